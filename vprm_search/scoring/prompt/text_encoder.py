"""Untrusted text to token ids, with the promise that no control token comes out of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vprm_search.errors import ConfigError, InputError
from vprm_search.recent import Recent

_CACHED_TEXTS = 4096
_BREAK = "\N{MIDDLE DOT}"  # visible, and no part of any known control token
_PROBES = ("a", "A b", "\na", " a", "1", "\n\n# a")
_MARKER_PROBES = ("\na", "\n a", "\n\n# a")  # a line break follows a marker word
_LEAD = "a"  # what stands before a marker word while its context is encoded

_STEMS = (
    r"im|img|image|images|video|audio|vision|picture|ref|box|quad|point|object|obj|patch",
    r"turn|user|assistant|system|sys|inst|message|header|role|chat|of_text|endoftext|eot|eom",
    r"tool|tools|function|call|calls|response|plugin|interpreter|action|think|thinking|answer",
    r"s|bos|eos|pad|unk|mask|cls|sep|fim|prefix|suffix|middle|prm|extra|sentinel|reserved|special",
)
_WORD = rf"(?:\w*_)?(?:{'|'.join(_STEMS)})(?:_\w*)?\d*"
_CONTROL_NAME = re.compile(rf"<[|｜].*[|｜]>|<{{1,2}}/?{_WORD}>{{1,2}}|\[/?{_WORD}\]", re.I | re.S)
"""Names of tokens that open or end a turn, an image, a box, a tool call or a thought."""


class Tokenizer(Protocol):
    """What the prompt builder needs of a tokenizer: the public face of transformers' ones."""

    @property
    def unk_token_id(self) -> int | None:
        """Id of the unknown token, if there is one."""
        ...

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of the named special tokens."""
        ...

    def __hash__(self) -> int:
        """Tokenizers hash by identity."""
        ...

    def __call__(self, text: str, *, add_special_tokens: bool, split_special_tokens: bool) -> Any:
        """Return a mapping with `input_ids`."""
        ...

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """Every token added on top of the model's vocabulary: by id, `content` and `special`."""
        ...

    def convert_tokens_to_ids(self, tokens: str) -> int | None:
        """Return the id of one token."""
        ...

    def convert_ids_to_tokens(self, ids: int) -> str:
        """Return the token of one id."""
        ...


def control_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Return by name the tokens that text must never become: they open or end something.

    These are the tokens flagged special, and of the other added ones those whose name is that of a
    marker (`<|…|>`, `<img>`, `</tool_call>`, `[INST]`). The rest of the added tokens is ordinary
    text: InternLM2 adds fullwidth letters, dashes and dots, others runs of blanks. The flag alone
    does not tell them apart, since published tokenizers leave markers unflagged.

    Args:
        tokenizer: a transformers tokenizer; what its conversion added counts as well.
    """
    added = {str(token.content): n for n, token in tokenizer.added_tokens_decoder.items()}
    flagged = {str(t.content) for t in tokenizer.added_tokens_decoder.values() if t.special}
    found = {
        name: token
        for name, token in added.items()
        if name.strip() and (name in flagged or is_control_name(name))
    }
    for token in tokenizer.all_special_ids:
        found.setdefault(tokenizer.convert_ids_to_tokens(token), token)
    return found


def is_control_name(name: str) -> bool:
    """Return whether a token of this name opens or ends something, whatever its flag says."""
    return _CONTROL_NAME.fullmatch(name.strip()) is not None


@dataclass(frozen=True, slots=True)
class EncodedText:
    """The tokens of one stretch of text; `neutralised` is 1 when the text had to be changed."""

    ids: tuple[int, ...]
    neutralised: int = 0


class TextEncoder:
    """Encodes stretches of text between control tokens, one tokenizer call each.

    Special-token parsing is off, and every result is checked against `control_tokens`: the switch
    alone is not enough, because added tokens that are not flagged special are parsed anyway, and
    unigram models can pick a control token as an ordinary piece. Text that still yields one is
    changed visibly (a middle dot inside the token's name) until it does not. All other text keeps
    the tokens it has by itself, those of user-defined pieces included.

    Tokenizers that treat the start of a text in a special way (SentencePiece's dummy prefix) would
    give a stretch other tokens than it has inside the conversation; for these, and for text that
    holds no control token, the stretch is encoded behind the control token it follows.

    `markers` are words of the ordinary vocabulary (text to id) that a layout uses as control
    tokens: they are kept out of texts in the same way, and texts can follow them.

    Raises `ConfigError` when a word of `control_words` is not a token of its own.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        control_words: Sequence[str],
        markers: Mapping[str, int] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._control = {word: self._require(word) for word in control_words}
        self._markers = dict(markers or {})
        self._contexts = {word: self._plain(_LEAD + word) for word in self._markers}
        self._forbidden = self._forbidden_words()
        self._forbidden_ids = frozenset(self._forbidden.values())
        self._anchored = any(
            self._behind(word, probe) != self._plain(probe)
            for words, probes in ((control_words, _PROBES), (self._markers, _MARKER_PROBES))
            for word in words
            for probe in probes
        )
        self._cache: Recent[tuple[str, str], EncodedText] = Recent(_CACHED_TEXTS)

    def control_id(self, word: str) -> int:
        """Return the id of one of the layout's control tokens."""
        return self._control[word]

    def encode(self, text: str, after: str) -> EncodedText:
        """Encode `text` as it stands behind the control token or marker `after`.

        `after=""` means that it stands at the start, or that it is encoded apart. Raises
        `InputError` when no change of the text keeps control tokens out of it.
        """
        key = (text, after if self._anchored else "")
        known = self._cache.get(key)
        if known is None:
            known = self._encode(text, after)
            self._cache.put(key, known)
        return known

    def _encode(self, text: str, after: str) -> EncodedText:
        clean = without_surrogates(text)
        if self._anchored and after:
            anchored = self._behind(after, clean)
            if anchored is not None and self._forbidden_ids.isdisjoint(anchored):
                return EncodedText(tuple(anchored))
        ids = self._plain(clean)
        found = self._found(ids)
        if not found:
            return EncodedText(tuple(ids))
        for words in (found, list(self._forbidden)):
            ids = self._plain(_broken(clean, words))
            if self._forbidden_ids.isdisjoint(ids):
                return EncodedText(tuple(ids), 1)
        raise InputError(
            f"a text of {len(text)} characters still encodes to control tokens "
            f"{self._found(ids)} after their names were broken up; this tokenizer cannot carry "
            "it, leave the text out"
        )

    def _found(self, ids: Sequence[int]) -> list[str]:
        seen = self._forbidden_ids.intersection(ids)
        return [word for word, token in self._forbidden.items() if token in seen]

    def _plain(self, text: str) -> list[int]:
        if not text:
            return []
        out = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return list(out["input_ids"])

    def _behind(self, word: str, text: str) -> list[int] | None:
        """Encode `text` behind a control token, or None where that token does not come out."""
        if word in self._markers:
            ids, context = self._plain(_LEAD + word + text), self._contexts[word]
            return ids[len(context) :] if ids[: len(context)] == context else None
        joined = self._tokenizer(word + text, add_special_tokens=False, split_special_tokens=False)
        ids = list(joined["input_ids"])
        return ids[1:] if ids[:1] == [self._control[word]] else None

    def _require(self, word: str) -> int:
        token = self._tokenizer.convert_tokens_to_ids(word)
        parsed = self._tokenizer(word, add_special_tokens=False, split_special_tokens=False)
        if token is None or list(parsed["input_ids"]) != [token]:
            raise ConfigError(
                f"the tokenizer has no token {word!r} of its own (it gives "
                f"{list(parsed['input_ids'])}); set the layout's token names to this model's, or "
                "check that the model directory holds the tokenizer files"
            )
        return token

    def _forbidden_words(self) -> dict[str, int]:
        """All control tokens by name, the layout's own and its marker words included."""
        words = control_tokens(self._tokenizer) | self._control
        for word, token in self._markers.items():
            words[word] = token
            if token in self._plain(word.strip()):  # the start of a text counts as a blank
                words[word.strip()] = token
        unknown = self._tokenizer.unk_token_id
        keep = {*self._control.values(), *self._markers.values()}
        return {w: token for w, token in words.items() if token in keep or token != unknown}


def _broken(text: str, words: Sequence[str]) -> str:
    """Break every name of a control token by a visible dot, longest names first."""
    for word in sorted(words, key=len, reverse=True):
        text = text.replace(word, word[0] + _BREAK + word[1:] if len(word) > 1 else _BREAK)
    return text


def without_surrogates(text: str) -> str:
    """Replace lone surrogates, which no tokenizer accepts, by U+FFFD; other text is unchanged."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
