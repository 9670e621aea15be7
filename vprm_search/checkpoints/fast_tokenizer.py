"""Turns vocabularies into the `tokenizer.json` of the tokenizers library, as plain JSON.

InternLM2's original tokenizer is sentencepiece BPE behind a Python class: added tokens are cut out
of the text first, every stretch between them goes through sentencepiece on its own, and `<s>` is
put before the whole. The file written here does the same with the library's own parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from vprm_search.checkpoints.sentencepiece_model import (
    BPE,
    BYTE,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Piece,
    SentencePieceModel,
)
from vprm_search.errors import CheckpointError

BLANK = "\N{LOWER ONE EIGHTH BLOCK}"
_BYTES = 256
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 cuts a text before merging; a fact of its published tokenizer."""


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token cut out of the text before anything else, with the id it must have."""

    id: int
    content: str
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


def sentencepiece_tokenizer(
    model: SentencePieceModel, added: Sequence[AddedToken], begin: AddedToken | None
) -> dict[str, Any]:
    """Return the `tokenizer.json` of a sentencepiece BPE model.

    An added token takes the place of the piece with its id. `begin` is written before every text
    that is encoded with special tokens. Raises `CheckpointError` for settings that would not give
    the same tokens as sentencepiece.
    """
    _check_settings(model)
    names = [piece.text for piece in model.pieces]
    added = [*added, *_user_defined(model, {token.id for token in added})]
    for token in sorted(added, key=lambda token: token.id):
        if token.id > len(names):
            raise CheckpointError(
                f"tokenizer: the added token {token.content!r} has id {token.id}, but there is "
                f"none with id {len(names)}"
            )
        names[token.id : token.id + 1] = [token.content]
    vocab = {name: number for number, name in enumerate(names)}
    if len(vocab) != len(names):
        raise CheckpointError("tokenizer: two tokens have the same name")
    replaced = {token.id for token in added}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(added),
        "normalizer": _normalizer(model),
        "pre_tokenizer": None,
        "post_processor": None if begin is None else _begins_with(begin),
        "decoder": _decoder(model),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": next((p.text for p in model.pieces if p.kind == UNKNOWN), None),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": sum(piece.kind == BYTE for piece in model.pieces) == _BYTES,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges(model.pieces, replaced),
        },
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


def differences(model: SentencePieceModel, replaced: set[int]) -> tuple[str, ...]:
    """Return what the tokenizers library cannot do as sentencepiece does, for the user to read."""
    found = []
    lost = _unreachable(model.pieces, replaced)
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


def qwen2_tokenizer(
    vocab: Mapping[str, int], rules: Sequence[str], added: Sequence[AddedToken]
) -> dict[str, Any]:
    """Return the `tokenizer.json` of Qwen2's `vocab.json` and the lines of its `merges.txt`."""
    pairs = [line.split(" ") for line in rules if line.strip() and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in pairs):
        raise CheckpointError("merges.txt holds a line that is not two tokens")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    pattern = {"type": "Split", "pattern": {"Regex": QWEN2_PATTERN}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(added),
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                pattern | {"behavior": "Isolated", "invert": False},
                byte_level | {"use_regex": False},
            ],
        },
        "post_processor": byte_level | {"use_regex": False},
        "decoder": byte_level | {"use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(vocab),
            "merges": pairs,
        },
    }


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


def _user_defined(model: SentencePieceModel, replaced: set[int]) -> list[AddedToken]:
    """User-defined pieces are found in the text before merging, as added tokens are.

    They are written with marked blanks, so they are looked for behind the normaliser; with a dummy
    prefix the library would look for the prefix, too.
    """
    behind = not model.add_dummy_prefix
    return [
        AddedToken(number, piece.text, special=False, normalized=behind)
        for number, piece in enumerate(model.pieces)
        if piece.kind == USER_DEFINED and number not in replaced
    ]


def _added(tokens: Sequence[AddedToken]) -> list[dict[str, Any]]:
    return [
        {
            "id": token.id,
            "content": token.content,
            "single_word": token.single_word,
            "lstrip": token.lstrip,
            "rstrip": token.rstrip,
            "normalized": token.normalized,
            "special": token.special,
        }
        for token in sorted(tokens, key=lambda token: token.id)
    ]


def _normalizer(model: SentencePieceModel) -> dict[str, Any]:
    blanks = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
    prefix = [{"type": "Prepend", "prepend": BLANK}] if model.add_dummy_prefix else []
    return {"type": "Sequence", "normalizers": [*prefix, blanks]}


def _decoder(model: SentencePieceModel) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": BLANK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if model.add_dummy_prefix:
        parts.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": parts}


def _begins_with(token: AddedToken) -> dict[str, Any]:
    name = token.content
    one, two = ({"Sequence": {"id": text, "type_id": 0}} for text in "AB")
    begin = {"SpecialToken": {"id": name, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [begin, one],
        "pair": list(chain([begin, one], [two])),
        "special_tokens": {name: {"id": name, "ids": [token.id], "tokens": [name]}},
    }
