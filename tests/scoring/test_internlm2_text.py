"""InternLM2's published tokenizer: ordinary text keeps its tokens, control tokens never come out.

The model file is the real one (Apache-2.0, InternLM); its user-defined pieces are fullwidth
letters, dashes and dots, and the reference reads them as what they are. The reference here is
sentencepiece itself.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.checkpoints import original_layout as layout
from vprm_search.checkpoints import convert_checkpoint
from vprm_search.scoring import PrmLayout, PromptBuilder
from vprm_search.scoring.prompt.text_encoder import control_tokens

spm = pytest.importorskip("sentencepiece")
REPLACED = tuple(f"[UNUSED_TOKEN_{n}]" for n in range(141, 147))
"""Pieces whose ids the published checkpoints give to `<|im_end|>` and its kin."""


@pytest.fixture(scope="module")
def source(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An original checkpoint with the real tokenizer and small random weights."""
    root = tmp_path_factory.mktemp("internlm2")
    layout.write_internlm2_tokenizer(root)
    shutil.copy(shared_data / "internlm2" / "tokenizer.model", root)
    size = 92_544
    words = {0: "<unk>", 1: "<s>", 2: "</s>"}
    words |= dict(enumerate(layout.INTERNLM2_TAIL, size - len(layout.INTERNLM2_TAIL)))
    words |= dict(enumerate(layout.IMAGE_WORDS, size))
    settings_file = root / "tokenizer_config.json"
    written = json.loads(settings_file.read_text())
    written["added_tokens_decoder"] = {
        str(number): {"content": word, "special": True} for number, word in words.items()
    }
    settings_file.write_text(json.dumps(written))
    added = {word: size + n for n, word in enumerate(layout.IMAGE_WORDS)}
    (root / "added_tokens.json").write_text(json.dumps(added))
    rows = size + len(added)
    shape = layout.Shape(hidden=16, heads=2, kv_heads=2, layers=1, intermediate=16)
    (root / "config.json").write_text(json.dumps(layout.config(shape, rows)))
    layout.write_shards(root, layout.weights(shape, rows), 1)
    return root


@pytest.fixture(scope="module")
def converted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    target = tmp_path_factory.mktemp("native") / "out"
    convert_checkpoint(source, target)
    return AutoTokenizer.from_pretrained(target, trust_remote_code=False)


@pytest.fixture(scope="module")
def builder(converted: Any) -> PromptBuilder:
    return PromptBuilder(converted, PrmLayout(begin_token="<s>"))


@pytest.fixture(scope="module")
def reference(source: Path) -> Any:
    return spm.SentencePieceProcessor(model_file=str(source / "tokenizer.model"))


@pytest.fixture(scope="module")
def user_defined(reference: Any) -> tuple[str, ...]:
    """The pieces that are found in a text before anything is merged."""
    size = reference.vocab_size()
    kinds = (reference.is_control, reference.is_unknown, reference.is_byte, reference.is_unused)
    tail = [n for n in range(92_352, size) if not any(kind(n) for kind in kinds)]
    return tuple(reference.id_to_piece(n) for n in tail)


def test_control_tokens_are_those_that_open_or_end_something(
    converted: Any, user_defined: tuple[str, ...]
) -> None:
    assert len(user_defined) == 192
    expected = {"<s>", "</s>", "<unk>", *layout.INTERNLM2_TAIL, *layout.IMAGE_WORDS}
    assert set(control_tokens(converted)) == expected
    assert set(user_defined) - set(REPLACED) <= set(converted.get_vocab())


@pytest.mark.parametrize(
    "text",
    ["点Ｅ在线段ＦＧ上", "……", "因此——答案是 ３", "ｘ＋ｙ", "[UNUSED_TOKEN_0]", "so\n\nＡＢ∥ＣＤ"],
)
def test_user_defined_pieces_keep_their_tokens(
    builder: PromptBuilder, converted: Any, reference: Any, text: str
) -> None:
    encoded = builder.encoder.encode(text, "")
    assert list(encoded.ids) == reference.encode(text)
    assert encoded.neutralised == 0
    assert converted.decode(encoded.ids) == text
    assert builder.build(text, [text]).neutralised == 0


WORDS = (
    *(
        "点Ｅ在线段ＦＧ上",
        "……",
        "——",
        "ｘ",
        "Ｅ",
        "[UNUSED_TOKEN_7]",
        "the base",
        " 12 + 3",
        "\n\n",
    ),
    *("因此", "角", "  ", "+", "-", "Step 1: "),
)
CONTROL = (*layout.INTERNLM2_TAIL, *layout.IMAGE_WORDS, *REPLACED, "<s>", "</s>", "<image>")
ordinary = st.lists(st.sampled_from(WORDS) | st.text("abcｘ…—\n 0９因", max_size=6), max_size=8)
any_text = st.lists(st.sampled_from((*WORDS, *CONTROL)) | st.text(max_size=6), max_size=8)


@given(words=ordinary)
@settings(max_examples=200)
def test_text_without_control_names_has_the_references_tokens(
    builder: PromptBuilder, reference: Any, words: list[str]
) -> None:
    text = "".join(words)
    encoded = builder.encoder.encode(text, "")
    assert encoded.neutralised == 0
    assert list(encoded.ids) == reference.encode(text)
    behind = builder.encoder.encode("user\n" + text, "<|im_start|>")
    assert list(behind.ids) == reference.encode("user\n" + text)


@given(words=any_text)
@settings(max_examples=200)
def test_no_control_token_comes_out_and_the_text_comes_back(
    builder: PromptBuilder, converted: Any, words: list[str]
) -> None:
    text = "".join(words).replace("\0", "").replace("\u2581", "")  # the two that it cannot carry
    encoded = builder.encoder.encode(text, "")
    assert set(control_tokens(converted).values()).isdisjoint(set(encoded.ids) - {0})
    if not encoded.neutralised:
        assert converted.decode(encoded.ids) == text
