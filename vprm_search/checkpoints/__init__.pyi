# Each is loaded when it is first used.
from vprm_search.checkpoints.convert import ConvertOptions as ConvertOptions
from vprm_search.checkpoints.convert import convert_checkpoint as convert_checkpoint
from vprm_search.checkpoints.convert import ensure_native as ensure_native
from vprm_search.checkpoints.convert import is_original as is_original
from vprm_search.checkpoints.output import FileRecord as FileRecord
from vprm_search.checkpoints.output import Manifest as Manifest
from vprm_search.checkpoints.output import check_converted as check_converted
from vprm_search.checkpoints.source import locate as locate
