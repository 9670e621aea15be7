"""Original VisualPRM and InternVL checkpoints into native ones: no remote code, no pickle."""

from vprm_search.checkpoints.convert import (
    ConvertOptions,
    convert_checkpoint,
    ensure_native,
    is_original,
)
from vprm_search.checkpoints.output import FileRecord, Manifest, check_converted
from vprm_search.checkpoints.source import locate

__all__ = [
    "ConvertOptions",
    "FileRecord",
    "Manifest",
    "check_converted",
    "convert_checkpoint",
    "ensure_native",
    "is_original",
    "locate",
]
