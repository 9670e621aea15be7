"""Step scores: prompt layouts, the in-process scorer and the memory of scores.

Nothing here loads torch until `TransformersScorer` or `PrmCheckpoint` is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vprm_search.scoring.families import FAMILIES, PrmFamily, ScorerFile
    from vprm_search.scoring.judge_scorer import JudgeScorer
    from vprm_search.scoring.pixels import PixelBudget, PreprocessConfig
    from vprm_search.scoring.prompt.layout import (
        PrmLayout,
        PromptBuilder,
        ScoringPrompt,
        build_prompt,
    )
    from vprm_search.scoring.prompt.marker_layout import MarkerLayout
    from vprm_search.scoring.score_cache import (
        CachedScorer,
        FileScoreStore,
        MemoryScoreStore,
        ScoreStore,
        step_keys,
    )
    from vprm_search.scoring.solution import score_solution, solution_request
    from vprm_search.scoring.transformers_scorer import TransformersScorer
    from vprm_search.scoring.vllm.transport import VllmOptions
    from vprm_search.scoring.vllm_scorer import VllmScorer
    from vprm_search.scoring.wrappers import OutcomeScorer

_HOMES = {
    "FAMILIES": "families",
    "FileScoreStore": "score_cache",
    "JudgeScorer": "judge_scorer",
    "MarkerLayout": "prompt.marker_layout",
    "CachedScorer": "score_cache",
    "MemoryScoreStore": "score_cache",
    "PixelBudget": "pixels",
    "PreprocessConfig": "pixels",
    "PrmFamily": "families",
    "PrmLayout": "prompt.layout",
    "PromptBuilder": "prompt.layout",
    "ScoreStore": "score_cache",
    "ScorerFile": "families",
    "ScoringPrompt": "prompt.layout",
    "TransformersScorer": "transformers_scorer",
    "VllmOptions": "vllm.transport",
    "VllmScorer": "vllm_scorer",
    "OutcomeScorer": "wrappers",
    "build_prompt": "prompt.layout",
    "score_solution": "solution",
    "solution_request": "solution",
    "step_keys": "score_cache",
}

__all__ = [
    "FAMILIES",
    "FileScoreStore",
    "JudgeScorer",
    "MarkerLayout",
    "CachedScorer",
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
    "OutcomeScorer",
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
