"""One tokenizer per kind of public checkpoint, trained on the spot, with its control tokens."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.scoring.random_internvl import QWEN_PATTERN

VOCAB = 640
# Llama 3's published pattern: numbers up to three digits, and words that keep one character before
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "### Question:\nWhat is the area of the triangle?\n\n### Solution Process:\nStep 1: we "
    "compute the base and the height. So the answer is 12 + 3 - 4 = 11.",
    "Question: How high is the bar?\nProcess: the red bar is 3 ки\nStep 2: so x = 2 ки\n",
    "Yes\nNo\nYes\nNo\n+\n-\n",
    "a и\nStep 2: b и\nsystem\nuser\nassistant\nYou are a careful judge.",
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n",
] * 20
INTERN = ("<|endoftext|>", "<s>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
QWEN_VL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)
LLAMA3 = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>"),
)
QWEN_MATH = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>", "<extra_1>")


@cache
def byte_level(special: tuple[str, ...], pattern: str = QWEN_PATTERN) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer, as in the Qwen and Llama 3 families."""
    tok = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(pattern=Regex(pattern), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tok.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, eos_token=special[-1], pad_token=special[0], bos_token=special[0]
    )


@cache
def sentencepiece(prepend: str) -> PreTrainedTokenizerFast:
    """Return BPE on marked blanks with byte fallback, as Mistral's; `prepend` is its scheme."""
    pieces = [f"<0x{n:02X}>" for n in range(256)]
    tok = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    tok.decoder = decoders.Metaspace(prepend_scheme=prepend, split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<unk>", "<s>", "</s>", *pieces],
        initial_alphabet=sorted({*"".join(CORPUS)} - {"\n"}),
        show_progress=False,
    )
    # word by word: a line break stays a byte of its own, as in the published models
    tok.train_from_iterator([word for text in CORPUS for word in text.split()], trainer)
    data: dict[str, Any] = json.loads(tok.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] not in pieces]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(data)),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


TOKENIZERS = {
    "visualprm": lambda: byte_level(INTERN),
    "dreamprm-1.5": lambda: byte_level(INTERN),
    "mm-prm": lambda: byte_level((*INTERN, "<prm>")),
    "qwen-vl-prm": lambda: byte_level(QWEN_VL),
    "rlhflow": lambda: byte_level(LLAMA3, LLAMA3_PATTERN),
    "qwen2.5-math-prm": lambda: byte_level(QWEN_MATH),
    "math-shepherd": lambda: sentencepiece("first"),
    "skywork-o1-prm": lambda: byte_level(QWEN_MATH),
    "ursa-rm": lambda: byte_level(QWEN_MATH),
}
