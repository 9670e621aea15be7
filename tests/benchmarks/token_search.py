"""A made-up search at the level of tokens: the paths of every round, and what they cost ideally."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tests.benchmarks.bare_model import IMAGE, Shape
from vprm_search.scoring.engine.token_tree import TokenPath

_MARKERS = 8  # of the turns around a step
_CLOSING = 3  # '+', the end of its turn, a line break


@dataclass(frozen=True)
class Path:
    """One candidate: its tokens up to the last read, where to read, and where its image is."""

    ids: tuple[int, ...]
    reads: tuple[int, ...]
    image: tuple[int, int]


@dataclass
class TokenWorld:
    """Draws problems and steps: a system turn, the image, a question, steps of 30 to 40 tokens."""

    shape: Shape
    seed: int = 0
    question_tokens: int = 80
    system_tokens: int = 40
    step_tokens: tuple[int, int] = (30, 40)

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)
        system = self._text(self.system_tokens)
        self.head = (
            *system,
            *((IMAGE,) * self.shape.image_tokens),
            *self._text(self.question_tokens),
        )
        self.image = (len(system), len(system) + self.shape.image_tokens)

    def _text(self, count: int) -> tuple[int, ...]:
        return tuple(self._draw.randrange(20, self.shape.vocab) for _ in range(count))

    def step(self) -> tuple[int, ...]:
        """Draw a step with the turn markers around it."""
        return self._text(self._draw.randint(*self.step_tokens) + _MARKERS)

    def path(self, steps: Sequence[tuple[int, ...]]) -> Path:
        """Return the path of these steps; a score is read at the last token of each."""
        ids = list(self.head)
        reads = []
        for number, step in enumerate(steps):
            ids += [*([11] * _CLOSING if number else []), *step]
            reads.append(len(ids) - 1)
        return Path(tuple(ids), tuple(reads), self.image)

    def solutions(self, count: int, steps: int) -> list[Path]:
        """Return the candidates of best-of-N: nothing but the problem is shared."""
        return [self.path([self.step() for _ in range(steps)]) for _ in range(count)]

    def beam(self, width: int, expand: int, depth: int) -> list[list[Path]]:
        """Return the candidates of every round of a beam search; survivors are drawn."""
        kept: list[tuple[tuple[int, ...], ...]] = [()]
        rounds = []
        for _ in range(depth):
            each = expand if kept != [()] else width * expand
            grown = [(*steps, self.step()) for steps in kept for _ in range(each)]
            rounds.append([self.path(steps) for steps in grown])
            kept = self._draw.sample(grown, min(width, len(grown)))
        return rounds


def distinct_tokens(paths: Sequence[Path]) -> int:
    """Return the tokens of all paths, each with its past once: what an ideal scorer computes."""
    from vprm_search.scoring.engine.token_tree import build_tree

    return build_tree([TokenPath("image", path.ids) for path in paths]).size


def visible_pairs(paths: Sequence[Path]) -> int:
    """Return how many (query, key) pairs the distinct tokens of these paths have."""
    from vprm_search.scoring.engine.token_tree import build_tree

    tree = build_tree([TokenPath("image", path.ids) for path in paths])
    return int((tree.positions() + 1).sum())
