"""Original VisualPRM and InternVL checkpoints into native ones: no remote code, no pickle."""

from vprm_search.lazy import names_in_stub

__getattr__, __dir__, __all__ = names_in_stub(__name__)
