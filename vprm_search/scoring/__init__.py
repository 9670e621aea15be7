"""Step scores: prompt layouts, the in-process scorer and the memory of scores.

Nothing here loads torch until `TransformersScorer` or `PrmCheckpoint` is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vprm_search.scoring.layout import PrmLayout, PromptBuilder, ScoringPrompt, build_prompt
    from vprm_search.scoring.memo import MemoScorer, step_keys
    from vprm_search.scoring.memo_store import FileScoreStore, MemoryScoreStore, ScoreStore
    from vprm_search.scoring.preprocess import PreprocessConfig
    from vprm_search.scoring.scorer_file import ScorerFile
    from vprm_search.scoring.solution import score_solution, solution_request
    from vprm_search.scoring.transformers_scorer import TransformersScorer

_HOMES = {
    "FileScoreStore": "memo_store",
    "MemoScorer": "memo",
    "MemoryScoreStore": "memo_store",
    "PreprocessConfig": "preprocess",
    "PrmLayout": "layout",
    "PromptBuilder": "layout",
    "ScoreStore": "memo_store",
    "ScorerFile": "scorer_file",
    "ScoringPrompt": "layout",
    "TransformersScorer": "transformers_scorer",
    "build_prompt": "layout",
    "score_solution": "solution",
    "solution_request": "solution",
    "step_keys": "memo",
}

__all__ = [
    "FileScoreStore",
    "MemoScorer",
    "MemoryScoreStore",
    "PreprocessConfig",
    "PrmLayout",
    "PromptBuilder",
    "ScoreStore",
    "ScorerFile",
    "ScoringPrompt",
    "TransformersScorer",
    "build_prompt",
    "score_solution",
    "solution_request",
    "step_keys",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
