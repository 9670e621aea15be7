"""Files of JSON lines that only grow, by which every run is resumed.

What is there is never written again. Lines of one call are written together and say how many more
of them follow: what a crash cut off, the call's other lines included, is left out, and taken away
before the next one is written, so that a call made again is counted as it would have been. Every
line says whose run it is of, so files of one run that were made on several machines may be joined
by `cat`, and others are refused. Several processes may write one file: each waits for its turn, and
reads what the others have written.
"""

from __future__ import annotations

import errno
import json
import os
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from vprm_search.errors import RecordError
from vprm_search.evaluate.folder import hold

Line = dict[str, Any]
"""A line as plain JSON: "run" and "left" are the file's own."""
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]
_NOWHERE = -1


class Lines:
    """A file that grows, and where its lines stand.

    Args:
        path: the file.
        read: makes a line of its bytes, or raises pydantic's `ValidationError`.
        run: the key of what all lines were made with.
        note: is told of every line, and of its place in the file.

    Raises:
        RecordError: a damaged line, or one of another run.
    """

    def __init__(
        self,
        path: Path,
        read: Callable[[bytes], Line],
        run: str,
        note: Callable[[Line, int], None],
    ) -> None:
        self.path, self._line_of, self.run, self._note = path, read, run, note
        self._end = self._read = 0
        if path.exists():
            self._catch_up()

    def at(self, places: Sequence[int]) -> list[Line]:
        """Return the lines at some places."""
        with self.path.open("rb") as file:
            found = []
            for place in places:
                file.seek(place)
                found.append(json.loads(file.readline()))
            return found

    def append(self, lines: Sequence[Line], *, synced: bool = True) -> None:
        """Write lines in one piece, behind all others. Raises `OSError` that names a full disk.

        They outlive the process, and if `synced` (which takes some milliseconds) the machine.
        """
        if not lines:
            return
        texts = [
            (json.dumps(told, ensure_ascii=False, allow_nan=False) + "\n").encode(errors="replace")
            for left, line in zip(range(len(lines))[::-1], lines, strict=True)
            for told in ({"run": self.run, "left": left, **line},)
        ]
        whole = b"".join(texts)
        with self.path.open("ab", buffering=0) as file:
            hold(file)
            if file.seek(0, os.SEEK_END) != self._end:
                self._catch_up()
                file.truncate(self._end)
            try:
                if file.write(whole) != len(whole):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if synced:
                    os.fsync(file.fileno())
            except OSError as error:  # which does not say where
                raise OSError(error.errno, error.strerror, str(self.path)) from error
        for line, text in zip(lines, texts, strict=True):
            self._note(line, self._end)
            self._end += len(text)
        self._read += len(lines)

    def _catch_up(self) -> None:
        """Note the lines behind the last one, without those of a last call that was cut off."""
        held: list[tuple[int, Line]] = []
        place = self._end
        with self.path.open("rb") as file:
            file.seek(place)
            for number, text in enumerate(file, start=self._read + 1):
                if not text.endswith(b"\n"):
                    return
                line = self._checked(text, f"{self.path}, line {number}")
                left = line.get("left", 0)
                if held and left != held[-1][1]["left"] - 1:  # of a file that was joined
                    self._keep(held, place)
                held.append((place, line))
                place += len(text)
                if not left:
                    self._keep(held, place)

    def _keep(self, held: list[tuple[int, Line]], end: int) -> None:
        for at, line in held:
            self._note(line, at)
        self._read += len(held)
        self._end = end
        held.clear()

    def _checked(self, text: bytes, where: str) -> Line:
        try:
            line = self._line_of(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            told = ": ".join([*map(str, first["loc"]), first["msg"]])
            raise RecordError(f"{where}: damaged ({told}); remove the line") from error
        if line.get("run", self.run) != self.run:
            raise RecordError(
                f"{where}: it was made with other settings ({line['run']}, not {self.run}); give "
                "those of the file, or another --out folder"
            )
        return line


@with_config(ConfigDict(strict=True, allow_inf_nan=False))
class Keyed(TypedDict):
    """What every line of a candidate has; a file's own shape adds to it."""

    run: str
    left: Count
    row: Annotated[int, Field(ge=1)]
    index: Annotated[int, Field(ge=0, lt=1 << 16)]


class KeyedLines(Lines):
    """Lines by row and index; they stay on the disk until they are asked for.

    Where several lines tell of one candidate the last one counts, but one that failed never takes
    the place of one that did not.

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
        self._failed = failed
        self._places: dict[int, array[int]] = {}  # by row: of each index, or nowhere
        self._count = 0
        self._lacking: set[tuple[int, int]] = set()
        super().__init__(path, TypeAdapter[Any](shape).validate_json, run, self._index)

    def has(self, row: int, index: int) -> bool:
        """Tell whether there is a line that has not failed."""
        return self.there(row, index) and (row, index) not in self._lacking

    def there(self, row: int, index: int) -> bool:
        """Tell whether there is a line, failed or not."""
        places = self._places.get(row, ())
        return index < len(places) and places[index] != _NOWHERE

    def first(self, row: int) -> int:
        """Return how many lines of a row there are in a row from index 0 on."""
        places = self._places.get(row, ())
        return next((n for n, place in enumerate(places) if place == _NOWHERE), len(places))

    def __len__(self) -> int:
        return self._count

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
        places = self._places.get(row, ())
        there = [index for index, place in enumerate(places) if place != _NOWHERE]
        if not there:
            return {}
        return dict(zip(there, self.at([places[index] for index in there]), strict=True))

    def one(self, row: int) -> Line | None:
        """Return a line of a row, None if there is none."""
        places = [place for place in self._places.get(row, ()) if place != _NOWHERE]
        return self.at(places[:1])[0] if places else None

    def _index(self, line: Line, place: int) -> None:
        row, index = line["row"], line["index"]
        there = self.there(row, index)
        if self._failed(line):
            if there and (row, index) not in self._lacking:
                return
            self._lacking.add((row, index))
        else:
            self._lacking.discard((row, index))
        places = self._places.setdefault(row, array("q"))
        places.extend([_NOWHERE] * (index + 1 - len(places)))
        places[index] = place
        self._count += not there
