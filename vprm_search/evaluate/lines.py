"""Files of JSON lines that only grow, a line for each candidate of each problem.

What is there is never written again. Lines of one call are written together and say how many more
of them follow: what a crash cut off, the call's other lines included, is left out, and taken away
before the next one is written, so that a call made again is counted as it would have been. Where
several lines tell of one candidate the last one counts, but one that failed never takes the place
of one that did not. Every line says whose run it is of, so files of one run that were made on
several machines may be joined by `cat`, and others are refused.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from vprm_search.errors import RecordError

Line = dict[str, Any]
"""A line as plain JSON: "run", "row" and "index" name what it is of."""
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]


@with_config(ConfigDict(strict=True, allow_inf_nan=False))
class Keyed(TypedDict):
    """What every line has; a file's own shape adds to it."""

    run: str
    left: Count
    row: Annotated[int, Field(ge=1)]
    index: Count


class KeyedLines:
    """The lines of a file by row and index; they stay on the disk until they are asked for.

    Args:
        path: the file.
        shape: what every line has.
        run: the key of what all lines were made with.
        failed: tells of a line that it is to be made again.

    Raises:
        RecordError: a damaged line, or one of another run.
    """

    def __init__(
        self, path: Path, shape: type[Keyed], run: str, failed: Callable[[Line], bool]
    ) -> None:
        self.path, self.run, self._failed = path, run, failed
        self._shape = TypeAdapter[Any](shape)
        self._places: dict[int, dict[int, int]] = {}
        self._lacking: set[tuple[int, int]] = set()
        self._end = 0
        if path.exists():
            for place, line in self._whole():
                self._note(line, place)

    def has(self, row: int, index: int) -> bool:
        """Tell whether there is a line that has not failed."""
        return index in self._places.get(row, ()) and (row, index) not in self._lacking

    def there(self, row: int, index: int) -> bool:
        """Tell whether there is a line, failed or not."""
        return index in self._places.get(row, ())

    def first(self, row: int) -> int:
        """Return how many lines of a row there are in a row from index 0 on."""
        places = self._places.get(row, {})
        return next(index for index in range(len(places) + 1) if index not in places)

    def __len__(self) -> int:
        return sum(map(len, self._places.values()))

    @property
    def failures(self) -> int:
        """How many candidates have a line, and none that has not failed."""
        return len(self._lacking)

    @property
    def lost(self) -> Line | None:
        """The line of one of these, None if there is none."""
        if not self._lacking:
            return None
        row, index = min(self._lacking)
        return self.of(row)[index]

    def of(self, row: int) -> dict[int, Line]:
        """Return the lines of a row by index, in the order of the indices."""
        places = self._places.get(row)
        if not places:
            return {}
        with self.path.open("rb") as file:
            found = {}
            for index in sorted(places):
                file.seek(places[index])
                found[index] = json.loads(file.readline())
            return found

    def one(self, row: int) -> Line | None:
        """Return a line of a row, None if there is none."""
        places = self._places.get(row)
        if not places:
            return None
        with self.path.open("rb") as file:
            file.seek(next(iter(places.values())))
            line: Line = json.loads(file.readline())
            return line

    def append(self, lines: Sequence[Line]) -> None:
        """Write lines in one piece, behind all others. Raises `OSError` that names a full disk."""
        if not lines:
            return
        texts = [
            (json.dumps(told, ensure_ascii=False, allow_nan=False) + "\n").encode(errors="replace")
            for left, line in zip(range(len(lines))[::-1], lines, strict=True)
            for told in ({"run": self.run, "left": left, **line},)
        ]
        whole = b"".join(texts)
        with self.path.open("ab", buffering=0) as file:
            if file.tell() != self._end:
                file.truncate(self._end)
            try:
                if file.write(whole) != len(whole):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError as error:  # which does not say where
                raise OSError(error.errno, error.strerror, str(self.path)) from error
        for line, text in zip(lines, texts, strict=True):
            self._note(line, self._end)
            self._end += len(text)

    def _note(self, line: Line, place: int) -> None:
        row, index = line["row"], line["index"]
        if self._failed(line):
            if self.has(row, index):
                return
            self._lacking.add((row, index))
        else:
            self._lacking.discard((row, index))
        self._places.setdefault(row, {})[index] = place

    def _whole(self) -> Iterator[tuple[int, Line]]:
        """Yield lines with their places, without those of a last call that a crash cut off."""
        held: list[tuple[int, Line]] = []
        place = 0
        with self.path.open("rb") as file:
            for number, text in enumerate(file, start=1):
                if not text.endswith(b"\n"):
                    return
                line = self._checked(text, f"{self.path}, line {number}")
                if held and line["left"] != held[-1][1]["left"] - 1:  # of a file that was joined
                    yield from held
                    held, self._end = [], place
                held.append((place, line))
                place += len(text)
                if not line["left"]:
                    yield from held
                    held, self._end = [], place

    def _checked(self, text: bytes, where: str) -> Line:
        try:
            line: Line = self._shape.validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            told = ": ".join([*map(str, first["loc"]), first["msg"]])
            raise RecordError(f"{where}: damaged ({told}); remove the line") from error
        if line["run"] != self.run:
            raise RecordError(
                f"{where}: it was made with other settings ({line['run']}, not {self.run}); give "
                "those of the file, or another --out folder"
            )
        return line
