"""InternLM2's published tokenizer, converted, against the sentencepiece library."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.checkpoints import original_layout as layout
from vprm_search.checkpoints import convert_checkpoint
from vprm_search.checkpoints.sentencepiece_model import USER_DEFINED, read_sentencepiece_model
from vprm_search.scoring.prompt.text_encoder import control_tokens

ADDED = dict(enumerate(layout.INTERNLM2_TAIL, 92538)) | dict(enumerate(layout.IMAGE_WORDS, 92544))
SENTENCES = st.sampled_from(
    [
        "点Ｅ在线段ＦＧ上……",
        "——所以∠ＡＢＣ＝６０°，",
        "因为x²+1>0，",
        "Step 1: the area is ½·b·h.\n\n",
        "  two  blanks\t",
        "\U0001f600é",
        "……———Ｅ Ｆ",
    ]
)


@pytest.fixture(scope="module")
def model_file(shared_data: Path) -> Path:
    return shared_data / "internlm2" / "tokenizer.model"


@pytest.fixture(scope="module")
def converted(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A conversion with the published vocabulary, loaded as a scorer loads it."""
    root = tmp_path_factory.mktemp("internlm2")
    source = root / "src"
    source.mkdir()
    layout.write_internlm2_tokenizer(source)
    shutil.copy(model_file, source / "tokenizer.model")
    settings_file = source / "tokenizer_config.json"
    data = json.loads(settings_file.read_text())
    named = {0: "<unk>", 1: "<s>", 2: "</s>"} | ADDED
    data["added_tokens_decoder"] = {
        str(number): {"content": word, "special": True} for number, word in named.items()
    }
    settings_file.write_text(json.dumps(data))
    (source / "added_tokens.json").unlink()
    shape = replace(layout.Shape(), hidden=12)
    rows = max(ADDED) + 1
    (source / "config.json").write_text(json.dumps(layout.config(shape, rows)))
    layout.write_shards(source, layout.weights(shape, rows), 1)
    assert convert_checkpoint(source, root / "out").warnings == ()
    return AutoTokenizer.from_pretrained(root / "out", trust_remote_code=False)


@pytest.fixture(scope="module")
def published(model_file: Path) -> Callable[[str], list[int]]:
    spm = pytest.importorskip("sentencepiece")
    encode: Callable[[str], list[int]] = spm.SentencePieceProcessor(
        model_file=str(model_file)
    ).encode
    return encode


@pytest.fixture(scope="module")
def user_defined(model_file: Path) -> dict[str, int]:
    """The pieces that are ordinary text, less those under the added tokens."""
    pieces = read_sentencepiece_model(model_file).pieces
    found = {p.text: n for n, p in enumerate(pieces) if p.kind == USER_DEFINED}
    assert len(found) == 192
    return {text: number for text, number in found.items() if number not in ADDED}


def test_user_defined_pieces_are_ordinary_text(
    converted: Any, user_defined: dict[str, int]
) -> None:
    """They were taken for control tokens: `点Ｅ在线段ＦＧ上` became `点·在线段··上`."""
    assert {"……", "——", "Ｅ"} <= set(user_defined)
    for text, number in user_defined.items():
        assert converted.added_tokens_decoder[number].content == text
        assert not converted.added_tokens_decoder[number].special
    control = control_tokens(converted)
    assert control.keys().isdisjoint(user_defined)
    assert set(ADDED.values()) <= control.keys()


def test_user_defined_pieces_are_sentencepieces_tokens(
    converted: Any, published: Callable[[str], list[int]], user_defined: dict[str, int]
) -> None:
    """Before merging and longest first, whatever stands around them, as sentencepiece does."""
    pieces = st.sampled_from(sorted(user_defined))
    letters = st.characters(min_codepoint=0xFF01, max_codepoint=0xFF5E) | st.sampled_from("…—…— ")
    words = st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12
    )
    chinese = st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF), max_size=8)
    parts = SENTENCES | pieces | words | chinese | st.text(letters, max_size=8)

    @settings(max_examples=300)
    @given(text=st.lists(parts, max_size=8).map("".join))
    @example(text="点Ｅ在线段ＦＧ上")
    @example(text="……———…[UNUSED_TOKEN_1][UNUSED_TOKEN_13]")
    def agree(text: str) -> None:
        if any(word in text for word in ADDED.values()):
            return  # these are cut out before sentencepiece sees the text
        out = converted(text, add_special_tokens=False, split_special_tokens=True)
        assert out["input_ids"] == published(text)

    agree()


def test_loading_warns_of_nothing(converted: Any, caplog: pytest.LogCaptureFixture) -> None:
    """transformers took a config without its own version for one of Mistral's old ones."""
    from transformers.utils import logging

    logging.enable_propagation()
    try:
        AutoTokenizer.from_pretrained(converted.name_or_path, local_files_only=True)
    finally:
        logging.disable_propagation()
    assert not caplog.records
