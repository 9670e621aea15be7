"""Files as tables: TSV, JSONL, JSON, and folders of parquet or arrow files.

A table is read from its beginning to its end in little memory, and any row of it can be read again
later: pictures stay in the file until they are asked for.
"""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from vprm_search.errors import MissingDependencyError, RecordError
from vprm_search.types import Json

Row = Mapping[str, Json]
"""The values of a row by column."""

_LARGEST_CELL = (1 << 31) - 1
_BATCH = 32  # rows of a parquet file that are in memory together


class Table(Protocol):
    """Rows of a file, numbered from 1."""

    def __iter__(self) -> Iterator[Row]:
        """Iterate over all rows, in order. Raises `RecordError` that names a damaged row."""
        ...

    def row(self, number: int) -> Row:
        """Return a row again, after the table was iterated over."""
        ...


def open_table(path: Path) -> Table:
    """Return the table in a file or folder, by its name's ending.

    Raises:
        RecordError: there is no such file, or its kind is not known.
        MissingDependencyError: parquet and arrow files without pyarrow.
    """
    if not path.exists():
        raise RecordError(f"{path}: there is no such file or folder")
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.suffix.lower() in (".parquet", ".arrow"))
        if not files:
            raise RecordError(f"{path}: the folder holds no .parquet or .arrow file")
        return ColumnTable(path, files)
    kinds: Mapping[str, Any] = {".tsv": TextTable, ".csv": TextTable, ".jsonl": JsonLines,
                                ".json": JsonTable}  # fmt: skip
    ending = path.suffix.lower()
    if ending in (".parquet", ".arrow"):
        return ColumnTable(path, [path])
    if ending not in kinds:
        raise RecordError(
            f"{path}: not a kind of file that is read; give {', '.join(kinds)}, .parquet, .arrow, "
            "or a folder of the last two"
        )
    table: Table = kinds[ending](path)
    return table


@dataclass(slots=True)
class TextTable:
    """A TSV or CSV file with a header, quoted as pandas and Excel do; cells of any size."""

    path: Path
    _places: list[int] = field(default_factory=list)
    _columns: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Row]:
        self._places.clear()
        with self.path.open("rb") as file:
            lines = _Lines(file, self.path)
            reader = self._reader(lines)
            self._columns = [name.strip() for name in self._next(reader, 0) or []]
            while True:
                place = lines.place
                cells = self._next(reader, len(self._places) + 1)
                if cells is None:
                    return
                if cells:  # an empty line is no row
                    self._places.append(place)
                    yield self._named(cells, len(self._places))

    def row(self, number: int) -> Row:
        """Return a row again."""
        with self.path.open("rb") as file:
            file.seek(self._places[number - 1])
            cells = self._next(self._reader(_Lines(file, self.path)), number)
        return self._named(cells or [], number)

    def _reader(self, lines: _Lines) -> Iterator[list[str]]:
        csv.field_size_limit(_LARGEST_CELL)
        return csv.reader(lines, delimiter="," if self.path.suffix.lower() == ".csv" else "\t")

    def _next(self, reader: Iterator[list[str]], number: int) -> list[str] | None:
        try:
            return next(reader, None)
        except csv.Error as error:
            where = f"row {number}" if number else "header"
            raise RecordError(f"{self.path}, {where}: damaged ({error})") from error

    def _named(self, cells: Sequence[str], number: int) -> Row:
        if len(cells) != len(self._columns):
            raise RecordError(
                f"{self.path}, row {number}: cells: {len(cells)}, but columns: "
                f"{len(self._columns)}; a cell with a tab, comma or line break in it must be quoted"
            )
        return dict(zip(self._columns, cells, strict=True))


@dataclass(slots=True)
class _Lines:
    """The lines of a file as text; `place` is where the next one begins, in bytes; `number` lines
    were read."""

    file: BinaryIO
    path: Path

    def __post_init__(self) -> None:
        self.place = self.file.tell()

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.file.readline()
        if not line:
            raise StopIteration
        self.number += 1
        encoding = "utf-8-sig" if not self.place else "utf-8"
        try:
            text = line.decode(encoding)
        except UnicodeDecodeError as error:
            raise RecordError(
                f"{self.path}, line {self.number}: byte {self.place + error.start} of the file is "
                "not UTF-8; convert the file"
            ) from error
        self.place += len(line)
        return text

    place: int = field(init=False)
    number: int = field(init=False, default=0)


@dataclass(slots=True)
class JsonLines:
    """A file with one JSON object a line."""

    path: Path
    _places: list[int] = field(default_factory=list)

    def __iter__(self) -> Iterator[Row]:
        self._places.clear()
        with self.path.open("rb") as file:
            lines = _Lines(file, self.path)
            while True:
                place = lines.place
                line = next(lines, None)
                if line is None:
                    return
                if line.strip():
                    self._places.append(place)
                    yield self._object(line, len(self._places))

    def row(self, number: int) -> Row:
        """Return a row again."""
        with self.path.open("rb") as file:
            file.seek(self._places[number - 1])
            return self._object(next(_Lines(file, self.path)), number)

    def _object(self, line: str, number: int) -> Row:
        try:
            return _object(json.loads(line), f"{self.path}, row {number}")
        except RecordError:
            raise
        except (ValueError, RecursionError) as error:
            raise RecordError(f"{self.path}, row {number}: not JSON ({error})") from error


class JsonTable:
    """A JSON file: a list of objects, or an object of objects by id. It is read as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            data = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise RecordError(f"{path}: not JSON ({error})") from error
        if isinstance(data, dict) and not all(isinstance(v, dict) for v in data.values()):
            lists = [value for value in data.values() if isinstance(value, list)]
            data = lists[0] if len(lists) == 1 else None  # {"data": [...], "version": ...}
        if isinstance(data, dict):
            data = [{"id": key, **value} for key, value in data.items()]
        if not isinstance(data, list):
            raise RecordError(f"{path}: expected a list of objects, or an object of objects by id")
        self._rows = [_object(one, f"{path}, row {n}") for n, one in enumerate(data, start=1)]

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def row(self, number: int) -> Row:
        """Return a row again."""
        return self._rows[number - 1]


def _object(data: Json, where: str) -> Row:
    if not isinstance(data, dict):
        raise RecordError(f"{where}: expected a JSON object, got {type(data).__name__}")
    return data


class ColumnTable:
    """Parquet or arrow files, as data sets of Hugging Face have them; one after the other."""

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        self.path = path
        self._files = files
        self._rows = [0]  # before each file
        self._open: tuple[int, int, Iterator[Row]] | None = None  # file, next row in it, its rows

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}  # another process opens its own files

    def __iter__(self) -> Iterator[Row]:
        self._rows = [0]
        for file in self._files:
            count = 0
            for row in _column_rows(file):
                count += 1
                yield row
            self._rows.append(self._rows[-1] + count)

    def row(self, number: int) -> Row:
        """Return a row again; quickest where rows are asked for in their order."""
        place = max(n for n, before in enumerate(self._rows[:-1]) if before < number)
        wanted = number - 1 - self._rows[place]
        if self._open is None or self._open[0] != place or self._open[1] > wanted:
            self._open = (place, 0, _column_rows(self._files[place]))
        _, at, rows = self._open
        for row in rows:
            at += 1
            if at > wanted:
                self._open = (place, at, rows)
                return row
        raise RecordError(f"{self.path}, row {number}: the file has become shorter")


def _column_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a parquet or arrow file."""
    is_parquet = path.suffix.lower() == ".parquet"
    name = "pyarrow.parquet" if is_parquet else "pyarrow"
    try:
        library = importlib.import_module(name)
        arrow = importlib.import_module("pyarrow")
    except ModuleNotFoundError as error:
        raise MissingDependencyError("pyarrow", "parquet") from error
    try:
        if is_parquet:
            with library.ParquetFile(path) as file:
                for group in range(file.num_row_groups):  # of all at once, much is read ahead
                    for batch in file.iter_batches(_BATCH, row_groups=[group]):
                        yield from batch.to_pylist()
            return
        with arrow.memory_map(str(path)) as source:
            try:
                batches = arrow.ipc.open_stream(source)
            except arrow.ArrowInvalid:  # the form of a file, with the places of its batches
                opened = arrow.ipc.open_file(source)
                batches = (opened.get_batch(n) for n in range(opened.num_record_batches))
            for batch in batches:
                for start in range(0, batch.num_rows, _BATCH):
                    yield from batch.slice(start, _BATCH).to_pylist()
    except (arrow.ArrowException, OSError) as error:
        raise RecordError(f"{path}: damaged ({error})") from error
