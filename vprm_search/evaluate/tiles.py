"""How a reward model is shown the pictures of a problem: in how many tiles, and how large."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from vprm_search.images.normalise import DEFAULT_LIMITS, normalise_image, open_rgb
from vprm_search.scoring.wrappers import ScorerWrapper
from vprm_search.types import ImageData, ScoreRequest, ScoreResult, StepScorer

_REMEMBERED = 64  # pictures


@dataclass(frozen=True, slots=True)
class Tiling:
    """A rule for tiles.

    Args:
        most: tiles of a picture.
        together: tiles of all pictures of a problem, shared evenly among them; None: no bound.
        doubled: whether a problem's first picture is shown at twice its width and height. Of grids
            as fitting as one another a larger picture gets the larger one.
    """

    most: int
    together: int | None = None
    doubled: bool = False

    def each(self, pictures: int) -> int:
        """Return the most tiles of a picture of a problem that has so many of them."""
        if self.together is None:
            return self.most
        return max(1, min(self.most, self.together // max(1, pictures)))


class TiledScorer(ScorerWrapper):
    """Shows a reward model pictures by a rule.

    Args:
        make: makes the scorer that cuts a picture into so many tiles at most.
        rule: for tiles.
    """

    def __init__(self, make: Callable[[int], StepScorer], rule: Tiling) -> None:
        super().__init__(make(rule.most))
        self._make, self._rule = make, rule
        self._scorers = {rule.most: self.inner}
        together = f"/{rule.together}-together" if rule.together is not None else ""
        self.identity = (
            f"{getattr(self.inner, 'identity', '')}{together}{'/doubled' if rule.doubled else ''}"
        )

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Score all requests: same length, same order."""
        by_tiles: dict[int, list[int]] = {}
        for place, request in enumerate(requests):
            by_tiles.setdefault(self._rule.each(len(request.images)), []).append(place)
        results: dict[int, ScoreResult] = {}
        for tiles, places in by_tiles.items():
            if tiles not in self._scorers:
                self._scorers[tiles] = self._make(tiles)
            shown = [self._shown(requests[place]) for place in places]
            scored = await self._scorers[tiles].score(shown)
            results |= zip(places, scored, strict=True)
        return [results[place] for place in range(len(requests))]

    def _shown(self, request: ScoreRequest) -> ScoreRequest:
        if not self._rule.doubled or not request.images:
            return request
        images = (_doubled(request.images[0]), *request.images[1:])
        problem = replace(request.problem, images=tuple(image.digest for image in images))
        return replace(request, problem=problem, images=images)


@lru_cache(maxsize=_REMEMBERED)
def _doubled(image: ImageData) -> ImageData:
    """Return a picture at twice its width and height; one that would be too large as it is."""
    picture, limits = open_rgb(image.png), DEFAULT_LIMITS
    width, height = 2 * picture.width, 2 * picture.height
    if max(width, height) > limits.max_side or width * height > limits.max_pixels:
        return image
    return normalise_image(picture.resize((width, height), _BILINEAR))


_BILINEAR = 2  # PIL.Image.Resampling.BILINEAR, by number so that PIL is not imported here
