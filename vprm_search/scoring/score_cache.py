"""Remember scores by content, so that no step of a search is scored twice."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from vprm_search.errors import ConfigError
from vprm_search.ids import digest
from vprm_search.scoring.prompt.layout import IMAGE_TAG
from vprm_search.scoring.prompt.text_encoder import without_surrogates
from vprm_search.scoring.reasons import is_permanent
from vprm_search.scoring.wrappers import ScorerWrapper, name_of
from vprm_search.types import Counts, ScoreRequest, ScoreResult, StepScore, StepScorer

DEFAULT_ENTRIES = 200_000
_KEY_VERSION = 1
# what version 0.1 wrote in another way has other keys, so that its scores are not taken for these
_PLACED_IMAGES = 2  # pictures where the question has them
_EMPTY_STEPS = 2  # no end of turn behind a step without text
_CHECK_CHARS = 16


@dataclass(frozen=True, slots=True)
class MemoEntry:
    """What is remembered of one step: P('+') in [0, 1], or why there will never be one."""

    value: float | None
    reason: str
    prefix_tokens: int
    step_tokens: int


class ScoreStore(Protocol):
    """Maps step keys to entries; it may forget, but never change what it was given."""

    def get(self, key: str) -> MemoEntry | None:
        """Return the entry of `key`, or None."""
        ...

    def put(self, key: str, entry: MemoEntry) -> None:
        """Remember `entry` under `key`."""
        ...


class MemoryScoreStore:
    """Keeps the latest `max_entries` scores of this process."""

    def __init__(self, max_entries: int = DEFAULT_ENTRIES) -> None:
        if max_entries < 1:
            raise ConfigError(f"max_entries is {max_entries}; it must be at least 1")
        self.max_entries = max_entries
        self._entries: OrderedDict[str, MemoEntry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> MemoEntry | None:
        """Return the entry of `key` and count it as used."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, key: str, entry: MemoEntry) -> None:
        """Remember an entry; the one used longest ago makes room for it."""
        self._entries[key] = entry
        self._entries.move_to_end(key)
        if len(self._entries) > self.max_entries:
            self._entries.popitem(last=False)

    def items(self) -> list[tuple[str, MemoEntry]]:
        """Return all entries, the one used longest ago first."""
        return list(self._entries.items())


class FileScoreStore:
    """Keeps scores in a file of JSON lines, one appended per score, readable by its owner only.

    Every line carries a checksum: a line that is cut off or damaged is a score not remembered,
    never a wrong one. A file with many more lines than `max_entries` is rewritten when opened.
    """

    def __init__(self, path: str | Path, max_entries: int = DEFAULT_ENTRIES) -> None:
        self.path = Path(path)
        self._memory = MemoryScoreStore(max_entries)
        lines = self._load()
        if lines > 2 * max_entries:
            self._rewrite()
        self._ends_mid_line = lines > 0 and not _ends_with_newline(self.path)

    def __len__(self) -> int:
        return len(self._memory)

    def get(self, key: str) -> MemoEntry | None:
        """Return the entry of `key` and count it as used."""
        return self._memory.get(key)

    def put(self, key: str, entry: MemoEntry) -> None:
        """Remember an entry and append it to the file; a known one is not written again."""
        known = self._memory.get(key) == entry
        self._memory.put(key, entry)
        if known:
            return
        line = ("\n" if self._ends_mid_line else "") + _line(key, entry)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        with os.fdopen(os.open(self.path, flags, 0o600), "a", encoding="utf-8") as stream:
            stream.write(line)  # one write in append mode: other processes' lines stay whole
        self._ends_mid_line = False

    def _load(self) -> int:
        if not self.path.exists():
            return 0
        lines = 0
        with self.path.open("rb") as stream:
            for line in stream:
                lines += 1
                found = _parse(line)
                if found is not None:
                    self._memory.put(*found)
        return lines

    def _rewrite(self) -> None:
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.writelines(_line(key, entry) for key, entry in self._memory.items())
        Path(name).replace(self.path)


def _line(key: str, entry: MemoEntry) -> str:
    body = [key, entry.value, entry.reason, entry.prefix_tokens, entry.step_tokens]
    text = json.dumps(body, allow_nan=False)
    return f"{_checksum(text)} {text}\n"


def _parse(line: bytes) -> tuple[str, MemoEntry] | None:
    try:
        check, text = line.decode("utf-8").rstrip("\n").split(" ", 1)
        if check != _checksum(text):
            return None
        key, value, reason, prefix_tokens, step_tokens = json.loads(text)
        if value is not None and not (math.isfinite(value) and 0 <= value <= 1):
            return None
    except (ValueError, TypeError):
        return None
    return key, MemoEntry(value, reason, prefix_tokens, step_tokens)


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:_CHECK_CHARS]


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"


@dataclass(slots=True)
class MemoMeter:
    """Steps served from memory (`hits`) and steps that had to be computed (`misses`)."""

    hits: int = 0
    misses: int = 0


class CachedScorer(ScorerWrapper):
    """Wraps a scorer and answers from a store what was scored before.

    The key of a step is a digest of the scorer's identity, the problem (question, system text,
    image digests) and all steps up to it, so it never depends on later steps. Failures are passed
    on and asked again, except "too_long", which cannot change. Raises `ConfigError` when the scorer
    has no `identity` and none is given: two models must never share scores.
    """

    def __init__(
        self, inner: StepScorer, store: ScoreStore | None = None, *, identity: str | None = None
    ) -> None:
        super().__init__(inner)
        self.identity = name_of(inner, identity)
        self.store = MemoryScoreStore() if store is None else store
        self.meter = MemoMeter()

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
            results.append(result if first else replace(result, cost=Counts()))
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
    placed = IMAGE_TAG in problem.question and problem.images
    version = _PLACED_IMAGES if placed else _KEY_VERSION
    text = (without_surrogates(problem.question), without_surrogates(problem.system))
    root = digest("score", version, identity, *text, len(problem.images), *problem.images)
    chain = accumulate(request.steps, _step_key, initial=root)
    return [key.hex() for key in chain][1:]


def _step_key(before: bytes, step: str) -> bytes:
    return digest(before, without_surrogates(step), *(() if step else (_EMPTY_STEPS,)))
