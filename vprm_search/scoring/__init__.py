"""Step scores: prompt layouts, the in-process scorer and the memory of scores.

Nothing here loads torch until `TransformersScorer` or `PrmCheckpoint` is asked for.
"""

from vprm_search.lazy import names_in_stub

__getattr__, __dir__, __all__ = names_in_stub(__name__)
