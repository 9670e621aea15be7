"""Remember scores by content, so that no step of a search is scored twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from vprm_search.errors import ConfigError
from vprm_search.ids import digest
from vprm_search.scoring.prompt.text_encoder import without_surrogates
from vprm_search.scoring.reasons import is_permanent
from vprm_search.scoring.score_store import MemoEntry, MemoryScoreStore, ScoreStore
from vprm_search.types import ScoreCost, ScoreRequest, ScoreResult, StepScore, StepScorer

_KEY_VERSION = 1


@dataclass(slots=True)
class MemoMeter:
    """Steps served from memory (`hits`) and steps that had to be computed (`misses`)."""

    hits: int = 0
    misses: int = 0


class CachedScorer:
    """Wraps a scorer and answers from a store what was scored before.

    The key of a step is a digest of the scorer's identity, the problem (question, system text,
    image digests) and all steps up to it, so it never depends on later steps. Failures are passed
    on and asked again, except "too_long", which cannot change. Raises `ConfigError` when the scorer
    has no `identity` and none is given: two models must never share scores.
    """

    def __init__(
        self, inner: StepScorer, store: ScoreStore | None = None, *, identity: str | None = None
    ) -> None:
        name = identity or getattr(inner, "identity", "")
        if not isinstance(name, str) or not name:
            raise ConfigError(
                f"{type(inner).__name__} has no 'identity'; pass identity=..., a name that changes "
                "whenever the scores would"
            )
        self.inner = inner
        self.identity = name
        self.store = MemoryScoreStore() if store is None else store
        self.meter = MemoMeter()

    @property
    def has_prefix_cache(self) -> bool:
        """Whether the scorer behind this one keeps what it computed for later calls."""
        return bool(getattr(self.inner, "has_prefix_cache", False))

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Score all requests: same length, same order; equal requests are computed once."""
        chains = [step_keys(self.identity, request) for request in requests]
        recalled = [self._recall(chain) for chain in chains]
        wanted: dict[str, int] = {}
        for number, (chain, found) in enumerate(zip(chains, recalled, strict=True)):
            if found is None:
                wanted.setdefault(chain[-1], number)
        asked = [requests[number] for number in wanted.values()]
        computed = await self.inner.score(asked) if asked else []
        fresh = dict(zip(wanted, computed, strict=True))
        self._count(chains, wanted)
        for key, number in wanted.items():
            self._remember(chains[number], fresh[key])
        results = []
        for number, (chain, found) in enumerate(zip(chains, recalled, strict=True)):
            result = fresh[chain[-1]] if found is None else found
            first = found is not None or wanted[chain[-1]] == number
            results.append(result if first else replace(result, cost=ScoreCost()))
        return results

    def _recall(self, chain: Sequence[str]) -> ScoreResult | None:
        """Return the result of a path all of whose steps are known, or None."""
        entries = [entry for key in chain if (entry := self.store.get(key)) is not None]
        failed = next((entry for entry in entries if entry.value is None), None)
        if failed is not None:  # a path whose prefix can never be scored
            return ScoreResult.failed(len(chain), failed.reason)
        if len(entries) < len(chain):
            return None
        return ScoreResult(
            tuple(StepScore(entry.value) for entry in entries),
            entries[0].prefix_tokens if entries else 0,
            tuple(entry.step_tokens for entry in entries),
        )

    def _count(self, chains: Sequence[Sequence[str]], wanted: dict[str, int]) -> None:
        new = {key for n in wanted.values() for key in chains[n] if self.store.get(key) is None}
        self.meter.misses += len(new)
        self.meter.hits += sum(map(len, chains)) - len(new)

    def _remember(self, chain: Sequence[str], result: ScoreResult) -> None:
        triples = zip(chain, result.scores, result.step_tokens, strict=True)
        for key, score, tokens in triples:
            if score.value is not None:
                self.store.put(key, MemoEntry(score.value, "", result.prefix_tokens, tokens))
        if result.scores and is_permanent(result.scores[-1].reason):
            # the whole path fails, but shorter paths through these steps do not
            self.store.put(chain[-1], MemoEntry(None, result.scores[-1].reason, 0, 0))


def step_keys(identity: str, request: ScoreRequest) -> list[str]:
    """Return the key of every step of a request; injective in all that a score depends on."""
    problem = request.problem
    text = (without_surrogates(problem.question), without_surrogates(problem.system))
    root = digest("score", _KEY_VERSION, identity, *text, len(problem.images), *problem.images)
    chain = accumulate(
        request.steps, lambda key, step: digest(key, without_surrogates(step)), initial=root
    )
    return [key.hex() for key in chain][1:]
