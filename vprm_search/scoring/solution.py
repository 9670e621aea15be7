"""Score one written solution: the shortest way from a text to its step scores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vprm_search.steps import REFERENCE_MAX_STEPS, split_solution
from vprm_search.types import ImageData, Problem, ScoreRequest, ScoreResult, StepScorer

if TYPE_CHECKING:
    from PIL.Image import Image

ImageSource = ImageData | bytes | str | os.PathLike[str]


def solution_request(
    question: str,
    solution: str | Sequence[str],
    images: Sequence[ImageSource | Image] = (),
    *,
    max_steps: int | None = REFERENCE_MAX_STEPS,
) -> ScoreRequest:
    """Return the request that scores `solution`; all texts are used as they are.

    Args:
        question: the question, with its pictures where it says `<image>`, else before it.
        solution: a text, which is cut and merged as VisualPRM's own code does
            (`split_solution`), or a list of steps, which is scored as it is.
        images: bytes, local paths, PIL images or `ImageData`; none for text alone.
        max_steps: the most steps a text is merged into; None merges nothing.

    Raises:
        ImageError: an image cannot be read.
        InputError: the solution exceeds a limit.
    """
    from vprm_search.images.normalise import normalise_image  # PIL is loaded when it is needed

    data = tuple(i if isinstance(i, ImageData) else normalise_image(i) for i in images)
    if isinstance(solution, str):
        steps = tuple(split_solution(solution, max_steps=max_steps))
    else:
        steps = tuple(solution)
    return ScoreRequest(Problem(question, tuple(i.digest for i in data)), steps, data)


async def score_solution(
    scorer: StepScorer,
    *,
    question: str,
    solution: str | Sequence[str],
    images: Sequence[ImageSource | Image] = (),
    max_steps: int | None = REFERENCE_MAX_STEPS,
) -> ScoreResult:
    """Score the steps of one solution.

    Args:
        scorer: any step scorer.
        question, solution, images, max_steps: see `solution_request`, whose errors it raises.
    """
    request = solution_request(question, solution, images, max_steps=max_steps)
    return (await scorer.score([request]))[0]
