"""Find a stop string in a text that grows token by token, decoding only where one can end."""

from __future__ import annotations

from typing import Any


class StopStrings:
    """Detects the first stop string in the decoded text of a growing list of tokens."""

    def __init__(self, tokenizer: Any, stop: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(s for s in stop if s)
        endings = {s.encode("utf-8")[-1] for s in self._stop}
        symbols = {_byte_symbols()[byte] for byte in endings}
        # A stop string can only be completed by a token that contains its last byte.
        self._suspects = frozenset(
            token for piece, token in tokenizer.get_vocab().items() if symbols & set(piece)
        )

    def cut(self, tokens: list[int]) -> str | None:
        """Return the text before the earliest stop string, or None if there is none yet.

        Call it after every token: only the newest token is examined.
        """
        if tokens[-1] not in self._suspects:
            return None
        text: str = self._tokenizer.decode(
            tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        places = [place for s in self._stop if (place := text.find(s)) >= 0]
        return text[: min(places)] if places else None


def _byte_symbols() -> dict[int, str]:
    """Return the printable character by which byte-level BPE writes each byte (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in table]
    return table | {byte: chr(256 + place) for place, byte in enumerate(others)}
