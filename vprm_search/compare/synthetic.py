"""The synthetic world as something to compare strategies on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from vprm_search.compare.problems import Ground, Task
from vprm_search.compare.synthetic_models import SyntheticPolicy, SyntheticScorer
from vprm_search.compare.synthetic_world import WORLDS, SyntheticWorld, WorldSettings
from vprm_search.types import Problem


@dataclass(frozen=True, slots=True)
class SyntheticProblems:
    """The first `problems` problems of a synthetic world, with its own policy and scorer."""

    settings: WorldSettings = field(default_factory=lambda: WORLDS["hard"])
    problems: int = 200

    @property
    def size(self) -> int:
        """The number of problems."""
        return self.problems

    def identity(self) -> dict[str, Any]:
        """Return the settings that make the world."""
        return {"world": "synthetic", "settings": asdict(self.settings), "problems": self.problems}

    def load(self, start: int, stop: int) -> Ground:
        """Return the problems from `start` up to `stop`, and the world's models."""
        world = SyntheticWorld(self.settings)
        tasks = [
            Task(Problem(world.question(number)), (), world.answer(number))
            for number in range(start, stop)
        ]
        return Ground(tasks, SyntheticPolicy(world), lambda: SyntheticScorer(world))
