"""Remember scores by content, so that no step of a search is scored twice."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, Protocol

from vprm_search.errors import ConfigError, RecordError
from vprm_search.ids import digest
from vprm_search.recent import Recent
from vprm_search.scoring.prompt.layout import IMAGE_TAG
from vprm_search.scoring.prompt.text_encoder import without_surrogates
from vprm_search.scoring.reasons import is_permanent
from vprm_search.scoring.wrappers import ScorerWrapper, name_of
from vprm_search.types import Counts, ScoreRequest, ScoreResult, StepScore, StepScorer

if sys.platform != "win32":
    import fcntl

DEFAULT_ENTRIES = 200_000
_KEY_VERSION = 1
# what version 0.1 wrote in another way has other keys, so that its scores are not taken for these
_PLACED_IMAGES = 2  # pictures where the question has them
_EMPTY_STEPS = 2  # no end of turn behind a step without text
_CHECK_CHARS = 16


@dataclass(frozen=True, slots=True)
class StoredScore:
    """What is remembered of one step: P('+') in [0, 1], or why there will never be one."""

    value: float | None
    reason: str
    prefix_tokens: int
    step_tokens: int


class ScoreStore(Protocol):
    """Maps step keys to entries; it may forget, but never change what it was given."""

    def get(self, key: str) -> StoredScore | None:
        """Return the entry of `key`, or None."""
        ...

    def put(self, key: str, entry: StoredScore) -> None:
        """Remember `entry` under `key`."""
        ...


class MemoryScoreStore(Recent[str, StoredScore]):
    """Keeps the latest `max_entries` scores of this process."""

    def __init__(self, max_entries: int = DEFAULT_ENTRIES) -> None:
        if max_entries < 1:
            raise ConfigError(f"max_entries is {max_entries}; it must be at least 1")
        super().__init__(max_entries)
        self.max_entries = max_entries


class FileScoreStore:
    """Keeps scores in a SQLite file that survives the process, readable by its owner only.

    Several processes may use one file at a time. Every entry carries a checksum: one that is
    damaged is a score not remembered, never a wrong one. A file of JSON lines, as version 0.1
    wrote it, is taken over when it is opened and stays beside the new one under the name
    `<name>.v0.1.jsonl`.

    Args:
        path: the file; made if it is not there.
        max_entries: the most scores to keep, at least 1; the oldest make room. The file may hold
            one in a hundred more.

    Raises:
        ConfigError: `max_entries` is below 1.
        RecordError: the file is damaged, of another kind or of a later version, or cannot be
            opened. It is left as it is. Later calls raise it too when the file cannot be used.
    """

    def __init__(self, path: str | Path, max_entries: int = DEFAULT_ENTRIES) -> None:
        if max_entries < 1:
            raise ConfigError(f"max_entries is {max_entries}; it must be at least 1")
        self.path = Path(path)
        self.max_entries = max_entries
        self._lock = threading.Lock()
        self._puts = 0
        self._inherited: list[sqlite3.Connection] = []
        with self._told():
            if not _is_sqlite(self.path):
                self._take_over()
            self._open()

    def __len__(self) -> int:
        return int(self._run("SELECT count(*) FROM scores")[0][0])

    def get(self, key: str) -> StoredScore | None:
        """Return the entry of `key`, or None."""
        rows = self._run(_GET, (key,))
        return _checked(*rows[0]) if rows else None

    def put(self, key: str, entry: StoredScore) -> None:
        """Remember an entry; one that is there already is replaced."""
        self._run(_PUT, _row(key, entry))
        self._puts += 1
        if self._puts % max(1, self.max_entries // 100) == 0:
            self._run(_DROP, (self.max_entries,))

    def close(self) -> None:
        """Close the file; a closed store cannot be used any more."""
        with self._lock:
            self._db.close()

    def _run(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock, self._told():
            if self._pid != os.getpid():  # a connection must neither cross a fork nor be closed
                self._inherited.append(self._db)
                self._open()
            return self._db.execute(statement, values).fetchall()

    def _open(self) -> None:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL, 0o600))
        self._pid = os.getpid()
        self._db = _connect(self.path)
        version, kind = (
            int(self._db.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("user_version", "application_id")
        )
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and kind != _APPLICATION:
            raise RecordError(f"{self.path} is a database of another program; {_ELSEWHERE}")
        if version > _SCHEMA:
            raise RecordError(
                f"{self.path} has schema {version} of a later version, this one knows {_SCHEMA}; "
                f"use that version, or {_ELSEWHERE}"
            )
        with contextlib.suppress(sqlite3.OperationalError):  # another process may be at it
            self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        if not tables:
            self._db.executescript(_MAKE)
        self._db.execute(_DROP, (self.max_entries,))

    def _take_over(self) -> None:
        """Turn a file of version 0.1 into a database, one process at a time."""
        while self.path.exists() and self.path.stat().st_size and not _is_sqlite(self.path):
            with self.path.open("rb") as stream:
                _wait_for(stream)
                # unless another process has put its own in this place meanwhile
                if os.path.samestat(os.fstat(stream.fileno()), self.path.stat()):
                    self._migrate(stream)

    def _migrate(self, stream: IO[bytes]) -> None:
        lines = stream.read()
        found = dict(entry for line in lines.split(b"\n") if (entry := _parse(line)) is not None)
        if not found:
            raise RecordError(f"{self.path} holds no scores and is no store of them; {_ELSEWHERE}")
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)
        os.close(handle)
        db = _connect(Path(name))
        db.executescript(_MAKE)
        db.execute("BEGIN")
        db.executemany(_PUT, (_row(key, entry) for key, entry in found.items()))
        db.execute("COMMIT")
        db.close()
        kept = self.path.with_name(self.path.name + ".v0.1.jsonl")
        with open(os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as copy:
            copy.write(lines)
        Path(name).replace(self.path)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise RecordError(
                f"the score store {self.path} cannot be used ({error}); nothing in it was "
                f"changed: {_ELSEWHERE}"
            ) from error


_APPLICATION = 0x7670_726D  # "vprm"
_SCHEMA = 1
_BUSY_S = 30.0
_ELSEWHERE = "give another path, or move the file away to begin a new one"
_COLUMNS = "key, value, reason, prefix_tokens, step_tokens, checksum"
_MAKE = f"""
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_SCHEMA};
CREATE TABLE IF NOT EXISTS scores (
    number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, value REAL,
    reason TEXT NOT NULL, prefix_tokens INTEGER NOT NULL, step_tokens INTEGER NOT NULL,
    checksum TEXT NOT NULL
);
"""
_GET = f"SELECT {_COLUMNS} FROM scores WHERE key = ?"  # noqa: S608 - constants
_PUT = f"""
INSERT INTO scores ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET value = excluded.value, reason = excluded.reason,
    prefix_tokens = excluded.prefix_tokens, step_tokens = excluded.step_tokens,
    checksum = excluded.checksum
"""  # noqa: S608 - constants
_DROP = """
DELETE FROM scores WHERE number <=
    (SELECT number FROM scores ORDER BY number DESC LIMIT 1 OFFSET ?)
"""


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    db.text_factory = lambda data: data.decode("utf-8", "replace")  # the checksum tells of damage
    return db


def _wait_for(stream: IO[bytes]) -> None:
    """Lock an open file for this process; on Windows, which has no such lock, do nothing."""
    if sys.platform != "win32":
        fcntl.flock(stream, fcntl.LOCK_EX)


def _is_sqlite(path: Path) -> bool:
    magic = b"SQLite format 3\0"
    if not path.exists():
        return False
    with path.open("rb") as stream:
        return stream.read(len(magic)) == magic


def _row(key: str, entry: StoredScore) -> tuple[Any, ...]:
    value = None if entry.value is None else float(entry.value)
    row = (key, value, entry.reason, entry.prefix_tokens, entry.step_tokens)
    return (*row, _checksum(json.dumps(row, allow_nan=False)))


def _checked(key: Any, *rest: Any) -> StoredScore | None:
    """Return the entry of a row that is as it was written."""
    *fields, checksum = rest
    if _checksum(json.dumps([key, *fields])) != checksum:
        return None
    return _sensible(StoredScore(*fields))


def _parse(line: bytes) -> tuple[str, StoredScore] | None:
    """Read a line of version 0.1: a checksum and a JSON list."""
    try:
        check, text = line.decode("utf-8").rstrip("\n").split(" ", 1)
        key, *fields = json.loads(text)
        entry = _sensible(StoredScore(*fields))
    except (ValueError, TypeError):
        return None
    return None if entry is None or check != _checksum(text) else (key, entry)


def _sensible(entry: StoredScore) -> StoredScore | None:
    return entry if entry.value is None or 0 <= entry.value <= 1 else None


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:_CHECK_CHARS]


@dataclass(slots=True)
class CacheMeter:
    """Steps served from memory (`hits`) and steps that had to be computed (`misses`)."""

    hits: int = 0
    misses: int = 0


class CachedScorer(ScorerWrapper):
    """Wraps a scorer and answers from a store what was scored before.

    The key of a step is a digest of the scorer's identity, the problem (question, system text,
    image digests) and all steps up to it, so it never depends on later steps. Failures are passed
    on and asked again, except "too_long", which cannot change. Raises `ConfigError` when the scorer
    has no `identity` and none is given: two models must never share scores.

    A request to `recompute` is answered only with what this object itself computed: a search that
    was begun elsewhere then asks the scorer inside what it was asked there, no less and no more.
    """

    def __init__(
        self, inner: StepScorer, store: ScoreStore | None = None, *, identity: str | None = None
    ) -> None:
        super().__init__(inner)
        self.identity = name_of(inner, identity)
        self.store = MemoryScoreStore() if store is None else store
        self.meter = CacheMeter()
        self._computed = MemoryScoreStore()

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Score all requests: same length, same order; equal requests are computed once."""
        chains = [step_keys(self.identity, request) for request in requests]
        recalled = [
            _recall(self._computed if request.recompute else self.store, chain)
            for request, chain in zip(requests, chains, strict=True)
        ]
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

    def _count(self, chains: Sequence[Sequence[str]], wanted: dict[str, int]) -> None:
        new = {key for n in wanted.values() for key in chains[n] if self.store.get(key) is None}
        self.meter.misses += len(new)
        self.meter.hits += sum(map(len, chains)) - len(new)

    def _remember(self, chain: Sequence[str], result: ScoreResult) -> None:
        triples = zip(chain, result.scores, result.step_tokens, strict=True)
        for key, score, tokens in triples:
            if score.value is not None:
                self._put(key, StoredScore(score.value, "", result.prefix_tokens, tokens))
        if result.scores and is_permanent(result.scores[-1].reason):
            # the whole path fails, but shorter paths through these steps do not
            self._put(chain[-1], StoredScore(None, result.scores[-1].reason, 0, 0))

    def _put(self, key: str, entry: StoredScore) -> None:
        for store in (self.store, self._computed):
            store.put(key, entry)


def _recall(store: ScoreStore, chain: Sequence[str]) -> ScoreResult | None:
    """Return the result of a path all of whose steps are known, or None."""
    entries = [entry for key in chain if (entry := store.get(key)) is not None]
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


def step_keys(identity: str, request: ScoreRequest) -> list[str]:
    """Return the key of every step of a request; injective in all that a score depends on."""
    problem = request.problem
    placed = IMAGE_TAG in problem.question and problem.images
    version = _PLACED_IMAGES if placed else _KEY_VERSION
    text = (without_surrogates(problem.question), without_surrogates(problem.system))
    context = (problem.context,) if problem.context else ()  # keys of old stores have none
    images = (*problem.images, *context)
    root = digest("score", version, identity, *text, len(problem.images), *images)
    chain = accumulate(request.steps, _step_key, initial=root)
    return [key.hex() for key in chain][1:]


def _step_key(before: bytes, step: str) -> bytes:
    return digest(before, without_surrogates(step), *(() if step else (_EMPTY_STEPS,)))
