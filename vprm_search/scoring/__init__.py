"""Step scores: prompt layouts, the in-process scorer and the memory of scores.

Nothing here loads torch until `TransformersScorer` or `PrmCheckpoint` is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vprm_search.scoring.families import FAMILIES, PrmFamily
    from vprm_search.scoring.judge import JudgeScorer
    from vprm_search.scoring.layout import PrmLayout, PromptBuilder, build_prompt
    from vprm_search.scoring.marker_layout import MarkerLayout
    from vprm_search.scoring.memo import MemoScorer, step_keys
    from vprm_search.scoring.memo_store import FileScoreStore, MemoryScoreStore, ScoreStore
    from vprm_search.scoring.patches import PixelBudget
    from vprm_search.scoring.preprocess import PreprocessConfig
    from vprm_search.scoring.scorer_file import ScorerFile
    from vprm_search.scoring.scoring_prompt import ScoringPrompt
    from vprm_search.scoring.solution import score_solution, solution_request
    from vprm_search.scoring.transformers_scorer import TransformersScorer
    from vprm_search.scoring.vllm.options import VllmOptions
    from vprm_search.scoring.vllm.scorer import VllmScorer
    from vprm_search.scoring.whole_answer import WholeAnswerScorer

_HOMES = {
    "FAMILIES": "families",
    "FileScoreStore": "memo_store",
    "JudgeScorer": "judge",
    "MarkerLayout": "marker_layout",
    "MemoScorer": "memo",
    "MemoryScoreStore": "memo_store",
    "PixelBudget": "patches",
    "PreprocessConfig": "preprocess",
    "PrmFamily": "families",
    "PrmLayout": "layout",
    "PromptBuilder": "layout",
    "ScoreStore": "memo_store",
    "ScorerFile": "scorer_file",
    "ScoringPrompt": "scoring_prompt",
    "TransformersScorer": "transformers_scorer",
    "VllmOptions": "vllm.options",
    "VllmScorer": "vllm.scorer",
    "WholeAnswerScorer": "whole_answer",
    "build_prompt": "layout",
    "score_solution": "solution",
    "solution_request": "solution",
    "step_keys": "memo",
}

__all__ = [
    "FAMILIES",
    "FileScoreStore",
    "JudgeScorer",
    "MarkerLayout",
    "MemoScorer",
    "MemoryScoreStore",
    "PixelBudget",
    "PreprocessConfig",
    "PrmFamily",
    "PrmLayout",
    "PromptBuilder",
    "ScoreStore",
    "ScorerFile",
    "ScoringPrompt",
    "TransformersScorer",
    "VllmOptions",
    "VllmScorer",
    "WholeAnswerScorer",
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
