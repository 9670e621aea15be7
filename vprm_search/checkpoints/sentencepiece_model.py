"""InternLM2's tokenizer: a sentencepiece BPE model, read and rebuilt with the tokenizers library.

The file is one protobuf message. The handful of fields needed is read here, so that neither
sentencepiece nor protobuf has to be installed; releases of sentencepiece have been reported to
refuse InternLM2's file. Source of the field numbers: sentencepiece, `sentencepiece_model.proto`.

The original tokenizer is sentencepiece behind a Python class: added tokens are cut out of the text
first, every stretch between them goes through sentencepiece on its own, and `<s>` is put before the
whole. The tokenizer built here does the same with the library's own parts.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vprm_search.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

BLANK = "\N{LOWER ONE EIGHTH BLOCK}"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BPE = 2
MAX_MODEL_BYTES = 64 << 20
_BYTE_PIECES = 256

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of the vocabulary; its id is its place."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """Vocabulary and settings, with sentencepiece's own defaults for fields that are absent."""

    pieces: tuple[Piece, ...]
    model_type: int
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool
    whitespace_as_suffix: bool


def read_sentencepiece_model(path: Path) -> SentencePieceModel:
    """Read a `tokenizer.model`. Raises `CheckpointError` when it is damaged."""
    try:
        if path.stat().st_size > MAX_MODEL_BYTES:
            raise CheckpointError(f"{path} is larger than {MAX_MODEL_BYTES} bytes")
        return _model(path.read_bytes())
    except (OSError, ValueError, IndexError, struct.error) as error:
        raise CheckpointError(f"{path} is no sentencepiece model: {error}") from error


def sentencepiece_tokenizer(
    model: SentencePieceModel, added: Mapping[int, AddedToken], begin: str | None
) -> Tokenizer:
    """Return the tokenizer of a sentencepiece BPE model.

    User-defined pieces are ordinary text that is found before merging, longest first, as added
    tokens are; so they become added tokens that are not special.

    Args:
        model: vocabulary and settings.
        added: the tokens by id that are cut out of a text first; each takes the place of the piece
            with its id.
        begin: the token that is written before every text encoded with special tokens.

    Raises:
        CheckpointError: settings or ids that would not give the same tokens as sentencepiece.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    _check_settings(model)
    cut_out = {**_user_defined(model, added), **added}
    vocab = _vocabulary(model, cut_out)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=merges(model.pieces, set(cut_out)),
            unk_token=next((p.text for p in model.pieces if p.kind == UNKNOWN), None),
            fuse_unk=True,
            byte_fallback=sum(piece.kind == BYTE for piece in model.pieces) == _BYTE_PIECES,
        )
    )
    prefix, blank = model.add_dummy_prefix, normalizers.Replace(" ", BLANK)
    before = [normalizers.Prepend(BLANK)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*before, blank])
    after = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), *after]
    )
    if begin is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[begin, "$A"], pair=[begin, "$A", "$B"], special_tokens=[(begin, vocab[begin])]
        )
    tokenizer.add_tokens([cut_out[number] for number in sorted(cut_out)])
    return tokenizer


def _vocabulary(model: SentencePieceModel, added: Mapping[int, AddedToken]) -> dict[str, int]:
    names = [piece.text for piece in model.pieces]
    for number, token in sorted(added.items()):
        if number > len(names):
            raise CheckpointError(
                f"tokenizer: the added token {token.content!r} has id {number}, but there is "
                f"none with id {len(names)}"
            )
        names[number : number + 1] = [token.content]
    vocab = {name: number for number, name in enumerate(names)}
    if len(vocab) != len(names):
        raise CheckpointError("tokenizer: two tokens have the same name")
    return vocab


def _user_defined(
    model: SentencePieceModel, replaced: Mapping[int, AddedToken]
) -> dict[int, AddedToken]:
    """Return the user-defined pieces by id.

    They are written with marked blanks, so they are looked for behind the normaliser; with a dummy
    prefix the library would look for the prefix, too.
    """
    from tokenizers import AddedToken

    behind = not model.add_dummy_prefix
    return {
        number: AddedToken(piece.text, special=False, normalized=behind)
        for number, piece in enumerate(model.pieces)
        if piece.kind == USER_DEFINED and number not in replaced
    }


def merges(pieces: Sequence[Piece], replaced: set[int]) -> list[tuple[str, str]]:
    """Return the merge rules of a sentencepiece BPE model, best score first.

    sentencepiece joins the neighbours whose joint piece has the best score; the library wants the
    pairs listed. So every way to cut a piece into two pieces is a rule with the piece's rank.
    Raises `CheckpointError` for an UNUSED piece that could be formed (sentencepiece would take it
    apart again).
    """
    usable = {
        piece.text: number
        for number, piece in enumerate(pieces)
        if piece.kind in (NORMAL, UNUSED) and number not in replaced
    }
    ranked = sorted(usable.items(), key=lambda item: (-pieces[item[1]].score, item[1]))
    rules: list[tuple[str, str]] = []
    for text, number in ranked:
        cuts = ((text[:at], text[at:]) for at in range(1, len(text)))
        pairs = [(left, right) for left, right in cuts if left in usable and right in usable]
        if pairs and pieces[number].kind == UNUSED:
            raise CheckpointError(f"tokenizer: the unused piece {text!r} cannot be expressed")
        rules += sorted(pairs, key=lambda pair: (usable[pair[0]], usable[pair[1]]))
    return rules


def differences(model: SentencePieceModel, replaced: Mapping[int, AddedToken]) -> tuple[str, ...]:
    """Return what the tokenizers library cannot do as sentencepiece does, for the user to read."""
    found = []
    lost = _unreachable(model.pieces, set(replaced))
    if lost:
        found.append(f"{lost} pieces need characters that are no pieces: texts with them differ")
    if model.add_dummy_prefix and _user_defined(model, replaced):
        found.append("behind a user-defined piece a text gets one blank more")
    return tuple(found)


def _unreachable(pieces: Sequence[Piece], replaced: set[int]) -> int:
    """Count pieces that sentencepiece can form and the tokenizers library cannot.

    sentencepiece joins any characters, the library first turns those that are no piece into bytes.
    """
    ordinary = {
        piece.text
        for number, piece in enumerate(pieces)
        if piece.kind == NORMAL and number not in replaced
    }
    formed_there, formed_here = set[str](), set[str]()
    for text in sorted(ordinary, key=len):
        if len(text) == 1:
            formed_there.add(text)
            formed_here.add(text)
        cuts = [(text[:at], text[at:]) for at in range(1, len(text))]
        if any(all(len(end) == 1 or end in formed_there for end in cut) for cut in cuts):
            formed_there.add(text)
        if any(formed_here.issuperset(cut) for cut in cuts):
            formed_here.add(text)
    return len(formed_there - formed_here)


def _check_settings(model: SentencePieceModel) -> None:
    problems = {
        "it is no BPE model": model.model_type != BPE,
        "it normalises characters": bool(model.charsmap),
        "it removes extra blanks": model.remove_extra_whitespaces,
        "it does not escape blanks": not model.escape_whitespaces,
        "it marks blanks behind words": model.whitespace_as_suffix,
    }
    found = [problem for problem, present in problems.items() if present]
    if found:
        raise CheckpointError(
            f"tokenizer.model cannot be expressed as a fast tokenizer: {'; '.join(found)}"
        )


def _model(data: bytes) -> SentencePieceModel:
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == _PIECES:
            pieces.append(_piece(_message(value)))
        elif number == _TRAINER:
            trainer = _message(value)
        elif number == _NORMALIZER:
            normalizer = _message(value)
    if not pieces:
        raise ValueError("it has no pieces")
    charsmap = normalizer.get(2, b"")
    return SentencePieceModel(
        pieces=tuple(pieces),
        model_type=int(trainer.get(3, 1)),
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
        add_dummy_prefix=bool(normalizer.get(3, True)),
        remove_extra_whitespaces=bool(normalizer.get(4, True)),
        escape_whitespaces=bool(normalizer.get(5, True)),
        whitespace_as_suffix=bool(trainer.get(24, False)),
    )


def _piece(fields: dict[int, int | bytes]) -> Piece:
    text, score = fields.get(1, b""), fields.get(2, b"\0\0\0\0")
    if not isinstance(text, bytes) or not isinstance(score, bytes):
        raise ValueError("a piece has fields of another kind")
    return Piece(text.decode("utf-8"), struct.unpack("<f", score)[0], int(fields.get(3, NORMAL)))


def _message(value: int | bytes) -> dict[int, int | bytes]:
    if not isinstance(value, bytes):
        raise ValueError("a message is expected, a number was found")
    return dict(_fields(value))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield `(number, value)` of a message; fixed-width values stay bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + size > len(data):
            raise ValueError("it is cut off")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number is too long")
