"""The tiny world's tokenizer: a written-down word list over bytes, without training or seed.

Every word of the world's language is one token: digits, operators, ``Step 7:`` and, importantly, a
colour with its equals sign (`` red =``), so the token that asks for a value also says whose. All
opening brackets together are one token and a closing bracket goes with the operator after it, so
the operands of a question stand at fixed places, two tokens apart. Any other text falls back to
bytes. No word is a control token, so text encoded with ``split_special_tokens=True`` cannot
produce one.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vprm_search.tiny.sampler import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, TURN_END, TURN_START
from vprm_search.tiny.world import COLOURS, OPERATORS

END_OF_TEXT, VIDEO = "<|endoftext|>", "<video>"
CONTROL_TOKENS = (
    END_OF_TEXT,
    TURN_START,
    TURN_END,
    IMAGE_START,
    IMAGE_END,
    IMAGE_CONTEXT,
    VIDEO,
)
IMAGE_TOKENS = 16
"""Image tokens of one 64x64 picture."""
IMAGE_BLOCK = IMAGE_START + IMAGE_CONTEXT * IMAGE_TOKENS + IMAGE_END
LONGEST_NUMBERED_STEP = 12

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_WORD_PATTERN = (
    r"(?:user|assistant|system)\n"
    r"|Step \d+:| [A-Za-z]+ =| Answer:"
    r"|### Question:\n|\n\n### Solution Process:\n"
    r"| ?\(+|\) [-+x](?= )"
    r"|\.?\n\n| ?[A-Za-z]+| ?\d| ?[^\sA-Za-z\d]|\s"
)


def policy_prompt(question: str) -> str:
    """Return the policy's prompt for one picture and a question, up to the solution's start."""
    return f"{TURN_START}user\n{IMAGE_BLOCK}\n{question}{TURN_END}\n{TURN_START}assistant\n"


def world_words() -> list[str]:
    """List the words that are one token each, in the order of their ids."""
    colours = [word for name in COLOURS for word in (name, f" {name}", f" {name} =")]
    digits = [word for digit in range(10) for word in (str(digit), f" {digit}")]
    operators = [word for operator in OPERATORS for word in (operator, f" {operator}")]
    steps = [f"Step {number}:" for number in range(1, LONGEST_NUMBERED_STEP + 1)]
    brackets = [" " + "(" * depth for depth in range(1, 5)]
    brackets += [f") {operator}" for operator in OPERATORS]
    turns = ["user\n", "assistant\n", "system\n", "### Question:\n", "\n\n### Solution Process:\n"]
    grammar = [
        "What",
        " is",
        " =",
        " Answer:",
        "Answer",
        ".\n\n",
        "\n\n",
        "Read",
        " the",
        " picture",
    ]
    return colours + digits + operators + steps + brackets + turns + grammar


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer; the same ids on every machine and in every run."""
    byte_symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    as_symbols = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = [
        "".join(part for part, _ in as_symbols.pre_tokenize_str(word)) for word in world_words()
    ]
    vocabulary: dict[str, int] = {}
    for entry in (*CONTROL_TOKENS, *byte_symbols, *words):
        vocabulary.setdefault(entry, len(vocabulary))
    model = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_WORD_PATTERN), "isolated"), as_symbols]
    )
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens(list(CONTROL_TOKENS))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        extra_special_tokens={
            "start_image_token": IMAGE_START,
            "end_image_token": IMAGE_END,
            "context_image_token": IMAGE_CONTEXT,
            "video_token": VIDEO,
        },
        padding_side="left",
        model_max_length=1024,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_tokenizer(path: Path) -> None:
    """Write the tokenizer files to a folder."""
    build_tokenizer().save_pretrained(path)


def token_id(tokenizer: PreTrainedTokenizerFast, word: str) -> int:
    """Return the id of a word that must be exactly one token.

    Raises:
        ValueError: the word is not one token.
    """
    ids: list[int] = tokenizer.encode(word, add_special_tokens=False)
    if len(ids) != 1:
        raise ValueError(f"{word!r} is {len(ids)} tokens, expected 1")
    return ids[0]
