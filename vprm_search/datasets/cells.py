"""What stands in a cell: a text, a list, choices, pictures, and marks of pictures in a text.

Lists come as JSON, as Python writes them (`['3', '4']`) and as numpy does (`['3' '4']`); they are
read token by token, and nothing is evaluated.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import re
import string
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vprm_search.types import Json

_NOTHING = ("", "nan", "none", "null")
_REFERENCE_CHARS = 64  # VLMEvalKit: a shorter cell is the index of the row that has the picture
_PATH_CHARS = 255
_SUFFIX = re.compile(r"\.(?:png|jpe?g|webp|gif|bmp|tiff?)$", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{17,}={0,2}\s*")
_QUOTED = re.compile(r"""(['"])([A-Za-z0-9+/=\s]+)\1""")


def is_empty(value: Json) -> bool:
    """Tell whether a cell says nothing."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value != value or value == [] or value == {}


def as_text(value: Json) -> str:
    """Return a cell as text, "" for an empty one; 6.0 is "6.0", as it is written."""
    if is_empty(value):
        return ""
    if isinstance(value, bool | list | dict):
        return json.dumps(value, ensure_ascii=False)
    return str(value).strip()


def as_list(value: Json) -> list[str]:
    """Return the items of a cell that is a list or the text of one. Raises `ValueError`."""
    if is_empty(value) or (isinstance(value, str) and value.strip().lower() in _NOTHING):
        return []
    if isinstance(value, str):
        value = _listed(value.strip())
    if not isinstance(value, list | tuple):
        raise ValueError("not a list")
    return [as_text(item) for item in value]


def _listed(text: str) -> list[Json]:
    if not (text.startswith("[") and text.endswith("]")):
        raise ValueError("not a list")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return _python_list(text)
    if not isinstance(data, list):
        raise ValueError("not a list")
    return data


def _python_list(text: str) -> list[Json]:
    """Return the strings and numbers of a flat list as Python or numpy write it."""
    items: list[Json] = []
    sign = ""
    try:
        for token in tokenize.generate_tokens(io.StringIO(text[1:-1]).readline):
            if token.type == tokenize.STRING:
                items.append(ast.literal_eval(token.string))
            elif token.type == tokenize.NUMBER:
                items.append(ast.literal_eval(sign + token.string))
            elif token.type == tokenize.NAME and token.string in ("None", "True", "False"):
                items.append(ast.literal_eval(token.string))
            elif token.type == tokenize.OP and token.string not in ",-":
                raise ValueError("not a flat list")
            elif token.type == tokenize.NAME:
                raise ValueError("not a list of texts and numbers")
            sign = "-" if token.string == "-" else ""
    except (tokenize.TokenError, SyntaxError, IndentationError) as error:
        raise ValueError("not a list that can be read") from error
    return items


# --- choices -------------------------------------------------------------------------------------


def column_choices(row: Mapping[str, Json]) -> tuple[str, ...]:
    """Return the choices that stand in the columns A, B, …. Raises `ValueError` for a gap."""
    given = {letter: as_text(row.get(letter)) for letter in string.ascii_uppercase}
    filled = [letter for letter, text in given.items() if text]
    if filled and filled[-1] != string.ascii_uppercase[len(filled) - 1]:
        missing = next(letter for letter in string.ascii_uppercase if not given[letter])
        raise ValueError(f"choice {missing} is empty, and choice {filled[-1]} is not")
    return tuple(given[letter] for letter in filled)


_OPTION = re.compile(r"(?:^|[;\n])\s*\(?([A-Z])[.):\uff0e\uff1a\u3001]\s*")


def lettered_choices(text: str) -> tuple[str, ...]:
    """Return the choices of a cell such as "A. 3; B. 4", none unless the letters are in order."""
    found = list(_OPTION.finditer(text))
    letters = "".join(match[1] for match in found)
    if len(found) < 2 or letters != string.ascii_uppercase[: len(found)]:
        return ()
    ends = [match.start() for match in found[1:]] + [len(text)]
    said = [text[m.end() : end].strip(" \t\n;") for m, end in zip(found, ends, strict=True)]
    return tuple(said) if all(said) else ()


# --- pictures ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Picture:
    """Where a picture is: the path of a file, or the place in a cell of a row.

    Args:
        row: the row whose cell it stands in, from 1; with `index`, found when all rows are known.
        column: the cell's column.
        place: its place in that cell, from 0.
        path: the file's path as it is written, "" for one that stands in the cell.
        index: the id of another row whose picture it is, "" for one of its own.
    """

    row: int
    column: str
    place: int = 0
    path: str = ""
    index: str = ""


def pictures_in(value: Json, row: int, column: str, *, references: bool) -> list[Picture]:
    """Return the pictures of a cell, none for an empty one. Raises `ValueError` for a stray value.

    Args:
        value: a path, base64, a data URI, `{"bytes": …, "path": …}`, or a list of such.
        row: the number of the cell's row.
        column: its column.
        references: whether a short text is the index of another row.
    """
    return [
        _picture(one, row, column, place, references)
        for place, one in enumerate(_picture_values(value))
    ]


def _picture_values(value: Json) -> list[Json]:
    if is_empty(value) or (isinstance(value, str) and value.strip().lower() in _NOTHING):
        return []
    if isinstance(value, list | tuple):
        return [one for one in value if not is_empty(one)]
    if isinstance(value, str) and value.lstrip().startswith("["):
        found = [match[2] for match in _QUOTED.finditer(value)]
        if len(value) > _PATH_CHARS and sum(map(len, found)) > 0.9 * len(value):
            return list(found)  # base64: no need to read it character by character
        return list(as_list(value))
    return [value]


def _picture(value: Json, row: int, column: str, place: int, references: bool) -> Picture:
    if isinstance(value, Mapping):
        if value.get("bytes"):
            return Picture(row, column, place)
        value = value.get("path")
    if isinstance(value, bytes):
        return Picture(row, column, place)
    if isinstance(value, int) and references:
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"a picture is a path, base64 or bytes, not {type(value).__name__}")
    text = value.strip()
    if text.startswith("data:") or (len(text) > _PATH_CHARS and _BASE64.fullmatch(text)):
        return Picture(row, column, place)
    if references and len(text) <= _REFERENCE_CHARS and not _SUFFIX.search(text):
        return Picture(row, column, place, index=text)
    if not _SUFFIX.search(text) and _BASE64.fullmatch(text) and _decodes(text):
        return Picture(row, column, place)
    return Picture(row, column, place, path=text)


def _decodes(text: str) -> bool:
    """Tell whether a short text is a picture in base64, by the first bytes that it stands for."""
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        return False
    return data.startswith((b"\x89PNG", b"\xff\xd8\xff", b"RIFF"))


def picture_bytes(value: Json, place: int) -> bytes | str:
    """Return what a picture that stands in a cell is made of: its bytes, base64 or a data URI."""
    one: Any = _picture_values(value)[place]
    if isinstance(one, Mapping):
        one = one["bytes"]
    return one if isinstance(one, bytes | str) else bytes(one)


# --- marks in a text -----------------------------------------------------------------------------

MARK = "<image>"
_NUMBERED = re.compile(r"<image[ _]?(\d{1,2})>", re.IGNORECASE)


def interleaved(text: str, pictures: int) -> tuple[str, tuple[int, ...]]:
    """Return a text with a mark `<image>` for every picture, and which picture is at each mark.

    Numbered marks (`<image 1>`, `<image1>`) become marks if every number has its picture; a number
    that is named again becomes "image 1". Where some number has none (MathVision names seven parts
    of one picture) they are left as they are. Pictures without a mark stand in front.

    Raises:
        ValueError: the text has more plain marks than there are pictures, or both kinds.
    """
    numbers = [int(found) for found in _NUMBERED.findall(text)]
    plain = text.count(MARK)
    if plain and plain > pictures:
        raise ValueError(f"marks {MARK}: {plain}, but pictures: {pictures}")
    if plain and numbers:
        raise ValueError(f"marks {MARK} and numbered marks in one text")
    order: list[int] = list(range(pictures - plain, pictures)) if plain else []
    if numbers and all(1 <= number <= pictures for number in numbers):

        def marked(match: re.Match[str]) -> str:
            place = int(match[1]) - 1
            if place in order:
                return f"image {match[1]}"
            order.append(place)
            return MARK

        text = _NUMBERED.sub(marked, text)
    front = [place for place in range(pictures) if place not in order]
    if front and order:
        text = f"{MARK}\n" * len(front) + text
    return text, (*front, *order)
