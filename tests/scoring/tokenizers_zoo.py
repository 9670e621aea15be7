"""Tokenizers of several families, trained on the spot, each with a hostile property."""

from __future__ import annotations

import json
from collections.abc import Callable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from examples.tiny_models.tokenizer import build_tokenizer
from tests.scoring.random_internvl import CORPUS, SPECIAL, qwen_like_tokenizer

# added pieces that are ordinary text, as InternLM2 has them: not flagged, found before merging
ORDINARY = ("[UNUSED_TOKEN_1]", "——", "……", "Ｅ", "Ｇ")
BYTES = [f"<0x{n:02X}>" for n in range(256)]


def _wrap(tok: Tokenizer) -> PreTrainedTokenizerFast:
    tok.add_tokens([AddedToken(piece, special=False, normalized=True) for piece in ORDINARY])
    return PreTrainedTokenizerFast(
        tokenizer_object=tok,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
    )


def qwen_with_plain_added_tokens() -> PreTrainedTokenizerFast:
    """Byte-level BPE; some added tokens are not flagged special, one eats blanks around it."""
    tokenizer = qwen_like_tokenizer(extra=("<tool_call>", "<think>", *ORDINARY))
    tokenizer.add_tokens([AddedToken("<ref>", lstrip=True, rstrip=True, special=False)])
    return tokenizer


def sentencepiece_bpe(prepend: str) -> PreTrainedTokenizerFast:
    """BPE on marked blanks with byte fallback, as in the Llama family; `prepend` is its scheme."""
    tok = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    tok.decoder = decoders.Metaspace(prepend_scheme=prepend, split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<unk>", *SPECIAL, *BYTES],
        initial_alphabet=sorted({*"".join(CORPUS), *"0123456789abcdefghijklmnopqrstuvwxyz<>|/"}),
        show_progress=False,
    )
    # word by word: a line break stays a byte of its own, as in the published models
    tok.train_from_iterator([word for text in CORPUS for word in text.split()], trainer)
    data = json.loads(tok.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] not in BYTES]
    return _wrap(Tokenizer.from_str(json.dumps(data)))


def unigram() -> PreTrainedTokenizerFast:
    """A unigram model: its control tokens are pieces with the best score of all."""
    tok = Tokenizer(models.Unigram())
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    tok.decoder = decoders.Metaspace(prepend_scheme="always", split=True)
    trainer = trainers.UnigramTrainer(
        vocab_size=400,
        special_tokens=["<unk>", *SPECIAL, "<video>"],
        initial_alphabet=sorted({*"".join(CORPUS), *"0123456789+-\n<>|/_"}),
        unk_token="<unk>",
        show_progress=False,
    )
    tok.train_from_iterator(CORPUS, trainer)
    return _wrap(tok)


FAMILIES: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "qwen": qwen_with_plain_added_tokens,
    "llama-first": lambda: sentencepiece_bpe("first"),
    "llama-always": lambda: sentencepiece_bpe("always"),
    "unigram": unigram,
    "tiny": build_tokenizer,
}
