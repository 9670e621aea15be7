"""How often each way of selecting is right at every N, from one pool of candidates per problem.

Two figures of each: "first", one selection among the first N of the pool, as papers report it; and
"expected", the mean over all sets of N of the pool. Selection by score is exact, by ranks: the
candidate of rank r (0-based) among n wins with probability C(n-1-r, N-1) / C(n, N). So is pass@N
(Chen et al., arXiv 2107.03374: 1 - C(n-c, N) / C(n, N)), for the oracle is a selection by score,
too. Votes are counted in every set where there are no more than `RESAMPLES` of them, else in so
many drawn ones, with the variance that this leaves. Where a pool has fewer than N candidates, all
of them are taken.

Ties. By score: the candidate that was sampled first; one without a score comes last. "majority" and
weighted votes: tied answers share, so that no order of the pool matters. "majority:first-seen": the
answer that was sampled first, as counters do it, which flatters whatever stands first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import comb, isfinite

import numpy as np
from numpy.typing import NDArray

from vprm_search.errors import ConfigError, RecordError
from vprm_search.evaluate.pool import NO_ANSWER, PooledCandidate, PooledProblem

RESAMPLES = 2000
LIKELIHOOD = "likelihood"
"""The critic that may score outside [0, 1]; it selects, and weighs no votes."""
PASS_1, ORACLE, MAJORITY, FIRST_SEEN = "pass@1", "oracle", "majority", "majority:first-seen"
VOTE = "vote:"
"""Before a critic's name: votes weighted by its scores."""

_EXACT = 2.0**40  # weights are rounded to 1 / this: their sums are exact then, and ties are ties

Matrix = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ProblemFigures:
    """What every selector is worth on one problem, from 0 to 1.

    Args:
        selectors: their names.
        first: `[selectors, sizes]` by one selection among the first N.
        expected: `[selectors, sizes]` the mean over sets of N.
        variance: `[selectors, sizes]` what drawing sets leaves of `expected`'s variance.
    """

    selectors: tuple[str, ...]
    first: Matrix
    expected: Matrix
    variance: Matrix


def sizes_of(samples: int) -> tuple[int, ...]:
    """Return the N's of a table: powers of two up to `samples`, and `samples`."""
    if samples < 1:
        raise ConfigError(f"a pool needs a candidate per problem at least, got {samples}")
    powers = (1 << place for place in range(samples.bit_length()))
    return tuple(dict.fromkeys((*powers, samples)))


def selectors_of(critics: Sequence[str]) -> tuple[str, ...]:
    """Return all ways of selecting where these critics have scored."""
    votes = (f"{VOTE}{critic}" for critic in critics if critic != LIKELIHOOD)
    return (PASS_1, ORACLE, MAJORITY, FIRST_SEEN, *critics, *votes)


def pass_at_k(candidates: int, right: int, k: int) -> float:
    """Return the chance that `k` of `candidates`, of which some are right, hold a right one."""
    if not 0 <= right <= candidates or not 1 <= k <= candidates:
        raise ConfigError(f"no pass@{k} of {candidates} candidates of which {right} are right")
    return 1 - comb(candidates - right, k) / comb(candidates, k)


@lru_cache(maxsize=256)
def rank_weights(candidates: int, sizes: tuple[int, ...]) -> Matrix:
    """Return `[candidates, sizes]`: the chance that rank r is the best of a set of so many."""
    table = np.zeros((candidates, len(sizes)))
    for place, size in enumerate(sizes):
        k = min(size, candidates)
        whole = comb(candidates, k)
        for rank in range(candidates - k + 1):
            table[rank, place] = comb(candidates - 1 - rank, k - 1) / whole
    table.flags.writeable = False
    return table


def figures_of(
    problem: PooledProblem,
    critics: Sequence[str],
    sizes: Sequence[int],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> ProblemFigures:
    """Return what every selector is worth on a problem.

    Args:
        problem: with its pool; without candidates everything is 0.
        critics: the names of their scores.
        sizes: the N's, 1 at least.
        seed: of drawn sets, with the problem's id: the order of problems does not matter.
        resamples: sets to draw where there are more.

    Raises:
        RecordError: a score outside [0, 1] (but for the likelihood's) or that is no number.
        ConfigError: an N below 1, or less than one set.
    """
    if min(sizes) < 1 or resamples < 1:
        raise ConfigError(f"N and the number of drawn sets are 1 at least: {sizes}, {resamples}")
    wanted = tuple(sizes)
    names = selectors_of(critics)
    first, expected, variance = (np.zeros((len(names), len(wanted))) for _ in range(3))
    pool = problem.candidates
    if not pool:
        return ProblemFigures(names, first, expected, variance)
    right = np.array([candidate.right for candidate in pool], dtype=np.float64)
    scores = np.array([_scores(problem, critic) for critic in critics]).reshape(-1, len(pool))
    chosen = (0, 1, *range(4, 4 + len(critics)))  # the rows of selections by score
    ranked = np.vstack([right, scores])
    order = np.argsort(-ranked, axis=1, kind="stable")
    weights = rank_weights(len(pool), wanted)
    expected[0] = right.mean()
    expected[list(chosen[1:])] = right[order] @ weights
    for place, size in enumerate(wanted):
        first[0, place] = right[:size].mean()
        first[list(chosen[1:]), place] = right[ranked[:, :size].argmax(axis=1)]
    votes = [2, 3, *range(4 + len(critics), len(names))]
    weighing = scores[[critic != LIKELIHOOD for critic in critics]]
    found = _Votes(problem, right, weighing).counted(wanted, seed, resamples)
    for table, part in zip((first, expected, variance), found, strict=True):
        table[votes] = part
    return ProblemFigures(names, first, expected, variance)


def _scores(problem: PooledProblem, critic: str) -> list[float]:
    """Return a critic's scores of a pool, -inf where there is none."""
    found = []
    for candidate in problem.candidates:
        score = candidate.scores.get(critic)
        if score is None:
            found.append(-np.inf)
            continue
        if not isfinite(score) or (critic != LIKELIHOOD and not 0 <= score <= 1):
            raise RecordError(
                f"problem {problem.id}, candidate {candidate.index}: {critic} has the score "
                f"{score}; it must be a number{'' if critic == LIKELIHOOD else ' from 0 to 1'}"
            )
        found.append(float(score))
    return found


# --- votes ---------------------------------------------------------------------------------------


class _Votes:
    """The votes of one pool: two majorities, and one weighted vote per critic.

    Sets are columns throughout: numpy is quick along the last axis.
    """

    def __init__(self, problem: PooledProblem, right: Matrix, scores: Matrix) -> None:
        """Take `right` `[candidates]` and `scores` `[critics, candidates]`, -inf for none."""
        groups = [candidate.vote_class for candidate in problem.candidates]
        known = {group: place for place, group in enumerate(sorted({*groups} - {NO_ANSWER}))}
        self._id, self._right = problem.id, right
        self._class = np.array([known.get(group, -1) for group in groups])
        self._member = (self._class == np.arange(len(known))[:, None]).astype(np.float64)
        scored = np.isfinite(scores)
        weights = np.round(np.where(scored, scores, 0) * _EXACT) / _EXACT
        self._critics, self._order = len(scores), np.argsort(-scores, axis=1, kind="stable")
        # [critics, classes, candidates]: what a candidate adds to each class under each critic
        self._weights = weights[:, None, :] * self._member
        self._standing = scored[:, None, :] * self._member
        self._all_scored = bool(scored.all())
        rights = [right[self._class == group] for group in range(len(known))]
        alike = all((each == each[0]).all() for each in rights)
        # [classes]: how right each class is, where all of a class are as right as one another
        self._class_right = np.array([each[0] for each in rights]) if alike else None

    def counted(
        self, sizes: tuple[int, ...], seed: int, resamples: int
    ) -> tuple[Matrix, Matrix, Matrix]:
        """Return first, expected and variance, each `[2 + critics, sizes]`."""
        count = len(self._right)
        first, expected, variance = (np.zeros((2 + self._critics, len(sizes))) for _ in range(3))
        if not (self._right[self._class >= 0] > 0).any():
            return first, expected, variance  # whatever is elected is wrong
        ranks = None
        for place, size in enumerate(sizes):
            k = min(size, count)
            every = comb(count, k) <= resamples
            if every:
                drawn = _all_sets(count, k)
            else:
                ranks = self._ranks(seed, resamples) if ranks is None else ranks
                drawn = ranks < k
            prefix = (np.arange(count) < k)[:, None]
            values = self._values(np.hstack([prefix, drawn]))
            first[:, place] = values[:, 0]
            expected[:, place] = values[:, 1:].mean(axis=1)
            if not every:
                variance[:, place] = values[:, 1:].var(axis=1) / drawn.shape[1]
        return first, expected, variance

    def _ranks(self, seed: int, resamples: int) -> NDArray[np.int64]:
        """Return `[candidates, resamples]`: each candidate's place in each random order."""
        own = int.from_bytes(hashlib.sha256(self._id.encode()).digest()[:8], "big")
        rng = np.random.Generator(np.random.PCG64([seed, own]))
        ranks: NDArray[np.int64] = rng.random((resamples, len(self._right))).argsort(axis=1).T
        return ranks

    def _values(self, drawn: Flags) -> Matrix:
        """Return `[2 + critics, sets]`: how right what each vote elects in each set is."""
        inside = drawn.astype(np.float64)
        votes = self._member @ inside
        there = votes > 0
        top = there & (votes == votes.max(axis=0))
        worth = (self._member * self._right) @ inside / np.maximum(votes, 1)
        rows = [_shared(top, worth), self._first_seen(drawn, top)]
        summed = self._summed(self._weights, inside)
        summed -= ~self._able(inside, there)  # the others cannot win: below 0
        elected = (summed == summed.max(axis=1, keepdims=True)) & there
        if self._class_right is None:
            rows += [_shared(elected[n], self._best(drawn, n)) for n in range(self._critics)]
        else:
            among = elected.astype(np.float64)
            rows += list(self._class_right @ among / np.maximum(among.sum(axis=1), 1))
        return np.stack(rows)

    def _able(self, inside: Matrix, there: Flags) -> Flags:
        """Return `[critics or 1, classes, sets]`: the classes that may win a weighted vote."""
        if self._all_scored:
            return there[None]
        stands = self._summed(self._standing, inside) > 0
        return np.where(stands.any(axis=1, keepdims=True), stands, there)

    def _summed(self, values: Matrix, inside: Matrix) -> Matrix:
        """Return `[critics, classes, sets]`: the sums of `values` over each set."""
        flat: Matrix = values.reshape(self._critics * len(self._member), len(inside)) @ inside
        return flat.reshape(self._critics, len(self._member), inside.shape[1])

    def _first_seen(self, drawn: Flags, top: Flags) -> Matrix:
        """Return how right the first candidate is whose answer is at the top."""
        padded = np.vstack([top, np.zeros((1, top.shape[1]), dtype=bool)])  # class -1: no answer
        elected = drawn & padded[self._class]
        found = elected.argmax(axis=0)
        return np.where(elected.any(axis=0), self._right[found], 0.0)

    def _best(self, drawn: Flags, critic: int) -> Matrix:
        """Return `[classes, sets]`: how right the best candidate of each class is."""
        order = self._order[critic]
        ranked = [order[self._class[order] == group] for group in range(len(self._member))]
        return np.stack([self._right[members][drawn[members].argmax(axis=0)] for members in ranked])


def _shared(elected: Flags, worth: Matrix) -> Matrix:
    """Return the mean of `worth` over the elected classes, 0 where there is none."""
    among = elected.astype(np.float64)
    shared: Matrix = (among * worth).sum(axis=0) / np.maximum(np.ones(len(among)) @ among, 1)
    return shared


@lru_cache(maxsize=64)
def _all_sets(candidates: int, size: int) -> Flags:
    """Return `[candidates, sets]`: which candidates are in each set of that size."""
    picks = np.array(list(combinations(range(candidates), size)))
    drawn = np.zeros((candidates, len(picks)), dtype=bool)
    np.put_along_axis(drawn, picks.T, True, axis=0)
    drawn.flags.writeable = False
    return drawn


# --- one selection -------------------------------------------------------------------------------


def chosen(problem: PooledProblem, selector: str, size: int) -> PooledCandidate | None:
    """Return what a selector takes among the first `size` of a pool, None if there is none.

    It must take one, so tied votes go to the answer of the best candidate (of weighted votes) or of
    the first one. Where nobody has an answer, votes take the first candidate.

    Raises:
        ConfigError: no such selector, or a critic that scored nothing here.
    """
    pool = problem.candidates[:size]
    if not pool:
        return None
    critic = selector.removeprefix(VOTE)
    if selector == PASS_1:
        return pool[0]
    if selector == ORACLE:
        return max(pool, key=lambda candidate: candidate.right)
    if selector in (MAJORITY, FIRST_SEEN):
        ranked, weights = list(pool), {candidate.index: 1.0 for candidate in pool}
    else:
        if not any(critic in candidate.scores for candidate in pool):
            there = selectors_of(list(pool[0].scores))
            raise ConfigError(f"problem {problem.id}: no selector {selector!r}; choose one of "
                              f"{', '.join(there)}")  # fmt: skip
        if selector == critic:
            return max(pool, key=lambda candidate: _known(candidate.scores.get(critic)))
        ranked = sorted(pool, key=lambda candidate: -_known(candidate.scores.get(critic)))
        weights = {c.index: round((c.scores.get(critic) or 0.0) * _EXACT) for c in pool}
    able = [c for c in ranked if c.vote_class != NO_ANSWER]
    if selector.startswith(VOTE):
        scored = {c.vote_class for c in able if c.scores.get(critic) is not None}
        able = [c for c in able if c.vote_class in scored] or able
    if not able:
        return pool[0]
    votes: dict[int, float] = {}
    for candidate in able:
        votes[candidate.vote_class] = votes.get(candidate.vote_class, 0) + weights[candidate.index]
    return max(able, key=lambda candidate: votes[candidate.vote_class])


def _known(score: float | None) -> float:
    return -np.inf if score is None else score
