"""Problem sets as people have them, read into problems with pictures, choices and answers.

The texts of a set are in memory, its pictures stay where they are until a problem is loaded: ten
thousand problems with pictures cost no more memory than their texts.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import overload

from vprm_search.answers import with_choices
from vprm_search.datasets import known
from vprm_search.datasets.cells import (
    Picture,
    as_text,
    interleaved,
    is_empty,
    picture_bytes,
    pictures_in,
)
from vprm_search.datasets.known import AnswerType, SetName
from vprm_search.datasets.tables import Row, Table, TextTable, open_table
from vprm_search.errors import ImageError, RecordError
from vprm_search.ids import digest
from vprm_search.images.normalise import (
    check_is_path,
    decode_base64,
    decode_data_uri,
    normalise_image,
    read_image_file,
)
from vprm_search.steps import normalise_text
from vprm_search.types import ImageData, Problem

MAX_PICTURE_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class Item:
    """One problem of a set, as it was published.

    Args:
        row: its row in the file, from 1.
        id: its id in the set; where the set repeats one, "#2" and so on is put behind it.
        question: the text that a model is asked, choices and marks of pictures included.
        answer: the right answer as it is published, "" if it is not.
        also: answers that are as right.
        choices: the texts of the choices A, B, …
        letters: the letters of the right choices ("B", "BD"), "" if no choice is asked for.
        answer_type: what kind of answer is asked for.
        pictures: where its pictures are, in the order of their marks.
        group: what is scored together with it: DynaMath's seed, WeMath's problem; else its id.
        variant: which part of the group it is: DynaMath's variant, WeMath's step.
        category: its category in the set.
        precision: decimals that the answer is rounded to (MathVista), None if nobody says.
    """

    row: int
    id: str
    question: str
    answer: str = ""
    also: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    letters: str = ""
    answer_type: AnswerType = "none"
    pictures: tuple[Picture, ...] = ()
    group: str = ""
    variant: str = ""
    category: str = ""
    precision: int | None = None


@dataclass(frozen=True, slots=True)
class LoadedItem:
    """A problem with its pictures, as policy and scorer take it."""

    problem: Problem
    images: tuple[ImageData, ...]


@dataclass(frozen=True, slots=True)
class ProblemSet(Sequence[Item]):
    """The problems of a file or folder, in its order.

    Args:
        path: the file or folder.
        name: which published set it is ("mathvista", …), "" if it is none that is known.
        items: the problems.
        image_root: the folder that relative paths of pictures are taken from.
        columns: the columns of the file.
        missing: pictures that are not there, each with its problem.
    """

    path: Path
    name: SetName
    items: tuple[Item, ...] = field(repr=False)
    image_root: Path
    columns: tuple[str, ...]
    table: Table = field(repr=False)
    missing: tuple[tuple[Item, Picture], ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Item, ...]: ...
    def __getitem__(self, place: int | slice) -> Item | tuple[Item, ...]:
        return self.items[place]

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def row(self, item: Item) -> Row:
        """Return all columns of an item, read from the file again."""
        return self.table.row(item.row)

    def load(self, item: Item) -> LoadedItem:
        """Return the problem with its pictures. Raises `ImageError` naming row and column."""
        where = f"{self.path}, row {item.row}"
        images = load_pictures(item.pictures, self.table, self.image_root, where)
        digests = tuple(image.digest for image in images)
        choices = tuple(map(normalise_text, item.choices))
        question = normalise_text(item.question).strip()
        return LoadedItem(Problem(question, digests, choices=choices), images)

    def identity(self) -> dict[str, str]:
        """Return digests of all texts and of the bytes of all pictures.

        Raises `ImageError` for a picture that is not there.
        """
        texts, pictures = hashlib.sha256(), hashlib.sha256()
        for item in self.items:
            said = (item.id, item.question, item.answer, *item.also, item.letters)
            texts.update(digest("item", *said, "choices", *item.choices))
            for picture in self.picture_digests(item):
                pictures.update(picture)
        return {"problems": texts.hexdigest(), "images": pictures.hexdigest()}

    def picture_digests(self, item: Item) -> list[bytes]:
        """Return the digests of the files of an item's pictures, none of which is decoded.

        Raises `ImageError` for a picture that is not there.
        """
        found = (_data(picture, self.table, self.image_root) for picture in item.pictures)
        return [hashlib.sha256(data).digest() for data in found]

    def check_images(self) -> None:
        """Raise `ImageError` if pictures are not there: how many, and where the first should be."""
        if not self.missing:
            return
        item, picture = self.missing[0]
        raise ImageError(
            f"{self.path}: pictures that are not under {self.image_root}: {len(self.missing)}, the "
            f"first in row {item.row}, column {picture.column}: {picture.path}; name the folder "
            "that these paths begin in (image_root, --images)"
        )


def read_problem_set(
    path: str | os.PathLike[str],
    *,
    image_root: str | os.PathLike[str] | None = None,
    name: SetName | None = None,
    limit: int | None = None,
    check_images: bool = True,
) -> ProblemSet:
    """Read a problem set: VLMEvalKit's TSV, JSONL, JSON, CSV, or a folder of parquet or arrow.

    Rows without a picture are kept. Nothing is fetched, and no picture is opened.

    Args:
        path: the file or folder.
        image_root: where relative paths of pictures begin. Default: the file's folder.
        name: which published set it is; default: told by its columns and its name.
        limit: problems to take, the first ones; None takes all.
        check_images: whether a picture that is not there is an error; else it is in `missing`.

    Raises:
        RecordError: a row that cannot be read; it names file, row and column.
        ImageError: a picture is not there, or its path is a URL.
        MissingDependencyError: parquet and arrow files without pyarrow.
    """
    path = Path(path)
    root = Path(image_root) if image_root is not None else path if path.is_dir() else path.parent
    if not root.is_dir():
        raise ImageError(f"{root}: there is no such folder of pictures")
    table = open_table(path)
    items: list[Item] = []
    columns: dict[str, None] = {}
    rows: dict[str, int] = {}
    copies = Counter[str]()
    for number, row in enumerate(table, start=1):
        columns |= dict.fromkeys(row)
        if name is None:
            name = known.set_of(path, columns, row)
        item = _item(row, number, name, f"{path}, row {number}", isinstance(table, TextTable))
        copies[item.id] += 1
        if copies[item.id] > 1:  # as public copies of MMMU have it
            item = replace(item, id=f"{item.id}#{copies[item.id]}")
        rows.setdefault(item.id, number)
        if limit is None or len(items) < limit:
            items.append(item)
    if not items:
        raise RecordError(f"{path} holds no problems")
    whole = {item.row: item for item in items}
    items = [_resolved(item, rows, whole, path) for item in items]
    missing = tuple(
        (item, picture)
        for item in items
        for picture in item.pictures
        if not picture_is_there(picture, root, f"{path}, row {item.row}")
    )
    found = ProblemSet(path, name or "", tuple(items), root, tuple(columns), table, missing)
    if check_images:
        found.check_images()
    return found


def load_pictures(
    pictures: Sequence[Picture], table: Table, root: Path, where: str
) -> tuple[ImageData, ...]:
    """Open pictures. Raises `ImageError` that begins with `where` and names the column."""
    images = []
    for picture in pictures:
        try:
            images.append(normalise_image(_data(picture, table, root)))
        except ImageError as error:
            named = f" ({picture.path})" if picture.path else ""
            raise ImageError(f"{where}, column {picture.column}{named}: {error}") from error
    return tuple(images)


def _data(picture: Picture, table: Table, root: Path) -> bytes:
    """Return the bytes of a picture's file."""
    if picture.path:
        inside = None if os.path.isabs(picture.path) else str(root)
        return read_image_file(picture.path, max_bytes=MAX_PICTURE_BYTES, image_root=inside)
    data = picture_bytes(table.row(picture.row)[picture.column], picture.place)
    if isinstance(data, bytes):
        return data
    read = decode_data_uri if data.lstrip().startswith("data:") else decode_base64
    return read(data, max_bytes=MAX_PICTURE_BYTES)


def picture_is_there(picture: Picture, root: Path, where: str) -> bool:
    """Tell whether a picture can be there. Raises `ImageError` for the address of a server."""
    if not picture.path:
        return True
    try:
        check_is_path(picture.path)
    except ImageError as error:
        raise ImageError(f"{where}, column {picture.column}: {error}") from error
    return (root / picture.path).is_file()


def _item(row: Row, number: int, name: SetName, where: str, references: bool) -> Item:
    question = known.question_of(row)
    if not question:
        raise RecordError(f"{where}, column question: it is empty, and so is every other prompt")
    try:
        answer, also = known.answer_of(row, name)
        choices = known.choices_of_row(row, name, question)
    except ValueError as error:
        raise RecordError(f"{where}, {error}") from error
    letters = known.letters_of(row, name, answer, choices)
    pictures = _pictures(row, number, where, references)
    try:
        text, order = interleaved(with_choices(question, choices), len(pictures))
    except ValueError as error:
        raise RecordError(f"{where}, column question: {error}") from error
    own = known.id_of(row, name) or str(number)
    group, variant = known.group_of(row, name, own)
    precision = as_text(row.get("precision"))
    return Item(
        row=number,
        id=own,
        question=text,
        answer=answer,
        also=also,
        choices=choices,
        letters=letters,
        answer_type=known.answer_type_of(row, answer, letters),
        pictures=tuple(pictures[place] for place in order),
        group=group,
        variant=variant,
        category=known.category_of(row, name, own),
        precision=int(float(precision)) if re.fullmatch(r"\d{1,2}(?:\.0*)?", precision) else None,
    )


def _pictures(row: Row, number: int, where: str, references: bool) -> list[Picture]:
    """Return the pictures of a row: those of its first column that has some, or image_1, …"""
    column = next((c for c in known.PICTURE_COLUMNS if not is_empty(row.get(c))), None)
    decoded = row.get("decoded_image")
    if isinstance(decoded, dict) and decoded.get("bytes"):
        column = "decoded_image"  # MathVista: `image` is the path that it came from
    columns = [column] if column else [f"image_{n}" for n in range(1, 20)]
    found: list[Picture] = []
    for column in columns:
        try:
            found += pictures_in(
                row.get(column), number, column, references=references and column == "image"
            )
        except ValueError as error:
            raise RecordError(f"{where}, column {column}: {error}") from error
    return found


def _resolved(item: Item, rows: dict[str, int], whole: dict[int, Item], path: Path) -> Item:
    """Return an item whose references to other rows are the places of those rows' pictures."""
    if not any(picture.index for picture in item.pictures):
        return item
    pictures: list[Picture] = []
    for picture in item.pictures:
        if not picture.index:
            pictures.append(picture)
            continue
        where = f"{path}, row {item.row}, column {picture.column}"
        number = rows.get(picture.index) or rows.get(picture.index.removesuffix(".0"))
        if number is None or number not in whole:
            raise RecordError(
                f"{where}: {picture.index!r} is neither a picture nor the index of a row"
            )
        named = whole[number].pictures
        if any(one.index for one in named) or len(named) != 1:
            raise RecordError(f"{where}: row {number}, which it names, has no one picture")
        pictures.append(named[0])
    return replace(item, pictures=tuple(pictures))
