"""Where remembered scores live: in memory, or in a file that survives the process."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vprm_search.errors import ConfigError

DEFAULT_ENTRIES = 200_000
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
