"""A branch of what is kept: a run of tokens, where its rows are, and when it was last needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vprm_search.scoring.engine.token_tree import Rows, common_prefix


@dataclass(slots=True, eq=False)
class Branch:
    """A run of tokens `[tokens]` without a fork.

    `slots` says where the row of each is, `plus` is P('+') where it was read, else NaN. A root is a
    branch without tokens. `used` is the time of the last call that needed it, which needed its
    first `extent` tokens; `before` is the time of the call before that.
    """

    ids: Rows
    slots: Rows
    plus: NDArray[np.float64]
    parent: Branch | None
    children: dict[int, Branch] = field(default_factory=dict)
    used: int = 0
    extent: int = 0
    before: int = 0

    def touch(self, time: int, extent: int) -> None:
        """Note that a call needs the first `extent` tokens."""
        if self.used != time:
            self.before, self.used, self.extent = self.used, time, 0
        self.extent = max(self.extent, extent)

    def walk(self, at: int, ids: Rows, time: int) -> Iterator[tuple[Branch, int, int]]:
        """Yield `(branch, start, stop)` of what is known of `ids` behind the first `at` tokens."""
        branch, done = self, 0
        branch.touch(time, at)
        while done < len(ids):
            if at == len(branch.ids):
                child = branch.children.get(int(ids[done]))
                if child is None:
                    return
                branch, at = child, 0
            same = common_prefix(branch.ids[at:], ids[done:], 0)
            if not same:
                return
            branch.touch(time, at + same)
            yield branch, at, at + same
            at += same
            done += same

    def split(self, at: int) -> Branch:
        """Cut off what is behind the first `at` tokens, as a child; return this branch."""
        if at == len(self.ids):
            return self
        below = Branch(
            self.ids[at:], self.slots[at:], self.plus[at:], self, self.children, self.used
        )
        if self.extent <= at:
            below.used = self.before  # the last call did not need it
        else:
            below.before, below.extent = self.before, self.extent - at
        for child in below.children.values():
            child.parent = below
        self.ids, self.slots, self.plus = self.ids[:at], self.slots[:at], self.plus[:at]
        self.children = {int(below.ids[0]): below}
        return self

    def leaves(self) -> Iterator[Branch]:
        """Yield the branches below this one that have none below them."""
        waiting = list(self.children.values())
        while waiting:
            branch = waiting.pop()
            waiting.extend(branch.children.values())
            if not branch.children:
                yield branch


def new_root() -> Branch:
    """Return a branch without tokens."""
    nothing: Rows = np.empty(0, dtype=np.int64)
    return Branch(nothing, nothing, np.empty(0), None)
