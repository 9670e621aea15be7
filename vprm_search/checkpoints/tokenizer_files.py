"""The tokenizer of a native checkpoint: Qwen2's files as they are, InternLM2's converted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vprm_search.checkpoints.fast_tokenizer import (
    AddedToken,
    differences,
    qwen2_tokenizer,
    sentencepiece_tokenizer,
)
from vprm_search.checkpoints.native_config import CHAT_TEMPLATE
from vprm_search.checkpoints.original_config import OriginalConfig
from vprm_search.checkpoints.sentencepiece_model import read_sentencepiece_model
from vprm_search.checkpoints.source import inside, read_json
from vprm_search.errors import CheckpointError, MissingDependencyError

SPECIAL = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
_TOKENIZER_FILE, _CONFIG_FILE, _ADDED_FILE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
)
_KEPT_SETTINGS = (
    "bos_token",
    "eos_token",
    "pad_token",
    "unk_token",
    "additional_special_tokens",
    "model_max_length",
    "errors",
)


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """Files to write by name, the ids of `SPECIAL`, and the token that begins a text, if any."""

    files: Mapping[str, bytes]
    special_ids: Mapping[str, int]
    begin: AddedToken | None
    warnings: tuple[str, ...]


def make_tokenizer(directory: Path, config: OriginalConfig) -> TokenizerFiles:
    """Make the tokenizer's files from those of an original checkpoint.

    Raises `CheckpointError` when a file is missing or damaged, when a special token or one of the
    words '+' and '-' is no token of its own, or when a token has no row in the model.
    """
    settings = read_json(inside(directory, _CONFIG_FILE))
    begin: AddedToken | None = None
    warnings: tuple[str, ...] = ()
    if config.language.kind == "internlm2":
        content, begin, warnings = _internlm2(directory, settings)
    else:
        content = _qwen2(directory, settings)
    ids = _check(content, config.language.vocab)
    prefix = "" if begin is None else "{{ '" + begin.content + "' }}"
    files = {
        _TOKENIZER_FILE: content,
        _CONFIG_FILE: _json(_settings(settings, content, config)),
        "chat_template.jinja": (prefix + CHAT_TEMPLATE).encode(),
    }
    return TokenizerFiles(files, ids, begin, warnings)


def _internlm2(
    directory: Path, settings: dict[str, Any]
) -> tuple[bytes, AddedToken | None, tuple[str, ...]]:
    path = inside(directory, "tokenizer.model")
    model = read_sentencepiece_model(path)
    pieces = {piece.text: number for number, piece in enumerate(model.pieces)}
    added = {token.content: token for token in _added_tokens(directory, settings)}
    named = [_name(settings.get(key, default)) for key, default in _INTERNLM2_TOKENS.items()]
    named += [_name(token) for token in settings.get("additional_special_tokens") or ()]
    for name in named:
        if name is not None and name not in added:
            if name not in pieces:
                raise CheckpointError(f"{directory}: the special token {name!r} has no id")
            added[name] = AddedToken(pieces[name], name)
    # the original class puts bos before every text unless told otherwise
    begins = settings.get("add_bos_token", True)
    begin = added[named[0] or ""] if begins and named[0] else None
    if settings.get("add_eos_token"):
        raise CheckpointError(f"{directory}: add_eos_token is set; scores would be read behind it")
    content = _json(sentencepiece_tokenizer(model, list(added.values()), begin))
    warnings = differences(model, {token.id for token in added.values()})
    return content, begin, warnings


_INTERNLM2_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "</s>",
}
"""The defaults of InternLM2's tokenizer class; bos comes first."""


def _qwen2(directory: Path, settings: dict[str, Any]) -> bytes:
    path = inside(directory, _TOKENIZER_FILE)
    if path.is_file():
        read_json(path)
        return path.read_bytes()
    vocab = read_json(inside(directory, "vocab.json"))
    try:
        rules = inside(directory, "merges.txt").read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory}: merges.txt cannot be read: {error}") from error
    return _json(qwen2_tokenizer(vocab, rules, _added_tokens(directory, settings)))


def _added_tokens(directory: Path, settings: dict[str, Any]) -> list[AddedToken]:
    """Return the tokens of `added_tokens_decoder`, and those only `added_tokens.json` has."""
    try:
        found = {
            entry["content"]: AddedToken(
                int(number),
                str(entry["content"]),
                special=bool(entry.get("special", False)),
                lstrip=bool(entry.get("lstrip", False)),
                rstrip=bool(entry.get("rstrip", False)),
                single_word=bool(entry.get("single_word", False)),
            )
            for number, entry in (settings.get("added_tokens_decoder") or {}).items()
        }
        if (directory / _ADDED_FILE).is_file():
            for content, number in read_json(inside(directory, _ADDED_FILE)).items():
                token = found.setdefault(content, AddedToken(int(number), content))
                if token.id != number:
                    raise ValueError(f"{content!r} has the ids {token.id} and {number}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{directory}: the added tokens cannot be read: {error}") from error
    return list(found.values())


def _check(content: bytes, vocab_size: int) -> dict[str, int]:
    """Load the tokenizer and return the ids of `SPECIAL`."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingDependencyError("tokenizers", "local") from error
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises bare exceptions
        raise CheckpointError(f"the tokenizer cannot be built: {error}") from error
    wanted = {token["content"]: token["id"] for token in json.loads(content)["added_tokens"]}
    vocab: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    moved = [name for name, number in wanted.items() if vocab.get(name) != number]
    if moved:
        raise CheckpointError(f"the tokenizer moves the ids of {', '.join(map(repr, moved[:3]))}")
    ids = {}
    for word in (*SPECIAL, "+", "-"):
        encoded = tokenizer.encode(word, add_special_tokens=False).ids
        if word in SPECIAL and encoded != [wanted.get(word)]:
            raise CheckpointError(f"the tokenizer has no special token {word!r}")
        if word not in vocab:
            raise CheckpointError(f"the tokenizer has no token {word!r}, which the score needs")
        ids[word] = vocab[word]
    largest = max(vocab.values())
    if largest >= vocab_size:
        raise CheckpointError(
            f"the tokenizer has {largest + 1} tokens, the model's embedding {vocab_size} rows"
        )
    return {word: ids[word] for word in SPECIAL}


def _settings(settings: dict[str, Any], content: bytes, config: OriginalConfig) -> dict[str, Any]:
    kept = {key: settings[key] for key in _KEPT_SETTINGS if key in settings}
    if config.language.kind == "internlm2":
        kept = _INTERNLM2_TOKENS | {key: value for key, value in kept.items() if value is not None}
    names = {token["content"] for token in json.loads(content)["added_tokens"]}
    extra = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        # the processor wants one; vLLM uses it as a pattern, so names with bars do not serve
        "video_token": "<video>" if "<video>" in names else "<IMG_CONTEXT>",
    }
    return kept | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "InternVLProcessor",
        "clean_up_tokenization_spaces": False,
        "extra_special_tokens": extra,
    }


def _name(token: Any) -> str | None:
    """Return the text of a token given as text or as a dict with `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _json(data: Any) -> bytes:
    return (json.dumps(data, ensure_ascii=False, indent=1) + "\n").encode("utf-8")
