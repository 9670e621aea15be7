"""Score one written solution: the shortest way from a text to its step scores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vprm_search.steps import split_steps
from vprm_search.types import ImageData, Problem, ScoreRequest, ScoreResult, StepScorer

if TYPE_CHECKING:
    from PIL.Image import Image

ImageSource = ImageData | bytes | str | os.PathLike[str]


def solution_request(
    question: str,
    solution: str | Sequence[str],
    images: Sequence[ImageSource | Image] = (),
    *,
    max_steps: int | None = None,
) -> ScoreRequest:
    """Return the request that scores `solution`.

    A text is cut at blank lines, and merged into at most `max_steps` steps if that is given; a list
    of steps is used as it is. Images are bytes, local paths, PIL images or `ImageData`. Raises
    `ImageError` or `InputError` for what cannot be used.
    """
    from vprm_search.images.normalise import normalise_image  # PIL is loaded when it is needed

    data = tuple(i if isinstance(i, ImageData) else normalise_image(i) for i in images)
    if isinstance(solution, str):
        steps = tuple(split_steps(solution, max_steps=max_steps))
    else:
        steps = tuple(solution)
    return ScoreRequest(Problem(question, tuple(i.digest for i in data)), steps, data)


async def score_solution(
    scorer: StepScorer,
    *,
    question: str,
    solution: str | Sequence[str],
    images: Sequence[ImageSource | Image] = (),
    max_steps: int | None = None,
) -> ScoreResult:
    """Score the steps of one solution; see `solution_request` for what it takes and raises."""
    request = solution_request(question, solution, images, max_steps=max_steps)
    return (await scorer.score([request]))[0]
