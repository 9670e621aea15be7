"""The converted tokenizers give the original's tokens, and refuse what they cannot express."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.checkpoints import original_layout as layout
from tests.checkpoints.original_forward import (
    Encode,
    internlm2_encoder,
    qwen2_encoder,
    sentencepiece_encode,
)
from tests.checkpoints.original_layout import Shape, sentencepiece_file, sentencepiece_pieces
from vprm_search.checkpoints import convert_checkpoint
from vprm_search.checkpoints.sentencepiece_model import (
    Piece,
    differences,
    merges,
    read_sentencepiece_model,
    sentencepiece_tokenizer,
)
from vprm_search.errors import CheckpointError

TEXTS = [
    "Hello  wörld\n\n\t12+3 = - x",
    "你是书生·万象，英文名是InternVL",
    "\U0001f600 \x00 é é ▁ a▁b",
    "<|im_start|>user\n<img><IMG_CONTEXT></img>\nhi<|im_end|>\n<|im_start|>assistant\n+<|im_end|>\n",
    "a     b    c  d   \n    e",
    "[UNUSED_TOKEN_140][UNUSED_TOKEN_145]<unk></s> <tool_call><0x0A>",
]
words = st.sampled_from([*TEXTS, *layout.CORPUS, *layout.INTERNLM2_TAIL, *layout.IMAGE_WORDS])
anything = st.lists(
    words | st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=6
).map("".join)


def _internlm2(root: Path, **options: bool) -> Path:
    source = root / "src"
    source.mkdir()
    rows = layout.write_internlm2_tokenizer(source, **options)
    return _finished(source, Shape(), rows)


def _qwen2(root: Path, *, fast: bool) -> Path:
    source = root / "src"
    source.mkdir()
    rows = layout.write_qwen2_tokenizer(source, fast=fast)
    return _finished(source, layout.VERSIONS["v1.1"], rows)


def _finished(source: Path, shape: Shape, rows: int) -> Path:
    (source / "config.json").write_text(json.dumps(layout.config(shape, rows)))
    layout.write_shards(source, layout.weights(shape, rows), 1)
    return source


CASES: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Encode]]] = {
    "internlm2": (_internlm2, lambda source: internlm2_encoder(source, sentencepiece_pieces())),
    "internlm2-user-defined": (
        lambda root: _internlm2(root, user_defined=True),
        lambda source: internlm2_encoder(source, _without_replaced()),
    ),
    "internlm2-dummy-prefix": (
        lambda root: _internlm2(root, dummy_prefix=True),
        lambda source: internlm2_encoder(source, sentencepiece_pieces(), dummy_prefix=True),
    ),
    "qwen2": (lambda root: _qwen2(root, fast=True), qwen2_encoder),
    "qwen2-without-tokenizer-json": (
        lambda root: _qwen2(root, fast=False),
        lambda source: lambda text: layout.qwen2_tokenizer().encode(text).ids,
    ),
}


def _without_replaced() -> list[tuple[str, float, int]]:
    """The pieces under the added tokens cannot be written as text.

    Here we differ from the original on purpose: it reads "[UNUSED_TOKEN_145]" as `<|im_end|>`.
    """
    pieces = sentencepiece_pieces(user_defined=True)
    last = len(pieces) - len(layout.INTERNLM2_TAIL)
    return [(p, s, layout.UNUSED if n >= last else kind) for n, (p, s, kind) in enumerate(pieces)]


@pytest.fixture(scope="module", params=list(CASES))
def tokenizers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Encode]:
    root = tmp_path_factory.mktemp("tokenizer")
    write, oracle = CASES[request.param]
    source = write(root)
    encode = oracle(source)
    convert_checkpoint(source, root / "out")
    return AutoTokenizer.from_pretrained(root / "out", trust_remote_code=False), encode


@settings(max_examples=40)
@given(text=anything)
def test_tokens_are_the_originals(tokenizers: tuple[Any, Encode], text: str) -> None:
    converted, encode = tokenizers
    assert converted(text)["input_ids"] == encode(text)


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_of_hard_texts(tokenizers: tuple[Any, Encode], text: str) -> None:
    converted, encode = tokenizers
    ids = encode(text)
    assert converted(text)["input_ids"] == ids
    assert _letters(converted.decode(ids)) == _letters(text)


def _letters(text: str) -> str:
    """Leave out what decoding cannot keep: blanks, their mark, `<s>`, decomposed characters."""
    text = unicodedata.normalize("NFC", text)
    return text.replace("<s>", "").replace(" ", "").replace("\u2581", "")


def test_special_tokens_stay_at_their_ids(tokenizers: tuple[Any, Encode]) -> None:
    converted, encode = tokenizers
    for word in ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"):
        assert converted.convert_tokens_to_ids(word) == encode(word)[-1]
        assert word in converted.get_added_vocab()
    begins = converted("")["input_ids"]
    assert begins == encode("")
    assert begins == ([1] if converted.bos_token == "<s>" else [])


def test_the_chat_template_renders_the_conversation(tokenizers: tuple[Any, Encode]) -> None:
    image = [{"type": "image"}, {"type": "text", "text": "what?"}]
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": image}]
    converted, encode = tokenizers
    text = converted.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    wanted = (
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\n<IMG_CONTEXT>\nwhat?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert converted(text, add_special_tokens=False)["input_ids"] == encode(wanted)


def test_begin_token_can_be_switched_off(tmp_path: Path) -> None:
    source = _internlm2(tmp_path)
    settings_file = source / "tokenizer_config.json"
    data = json.loads(settings_file.read_text()) | {"add_bos_token": False}
    settings_file.write_text(json.dumps(data))
    convert_checkpoint(source, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("")["input_ids"] == []
    written = json.loads((tmp_path / "out" / "vprm.json").read_text())
    assert written["layout"]["begin_token"] is None


@settings(max_examples=60)
@given(data=st.data())
def test_merges_join_as_sentencepiece_joins(data: st.DataObject) -> None:
    """Random vocabularies over two letters: the hardest case, everything overlaps."""
    from tokenizers import Tokenizer

    texts = data.draw(st.lists(st.text("ab", min_size=2, max_size=4), unique=True, max_size=8))
    # a piece can be formed only if it grows one merge at a time, as training makes it
    known = {"a", "b"}
    grown = []
    for text in sorted(texts, key=len):
        if any(text[:at] in known and text[at:] in known for at in range(1, len(text))):
            grown.append(text)
            known.add(text)
    order = data.draw(st.permutations([*grown, "a", "b"]))
    pieces = [("<unk>", 0.0, 2), *((p, -float(n), 1) for n, p in enumerate(order))]
    model = [Piece(*piece) for piece in pieces]
    rules = merges(model, set())
    vocab = {piece.text: number for number, piece in enumerate(model)}
    fast = {"type": "BPE", "vocab": vocab, "merges": rules, "unk_token": "<unk>"}
    tokenizer = Tokenizer.from_str(json.dumps({"version": "1.0", "model": fast}))
    text = data.draw(st.text("ab", max_size=12))
    ours = tokenizer.encode(text).ids
    theirs = sentencepiece_encode(text, pieces)
    if len(rules) == len({a + b for a, b in rules}):
        assert ours == theirs  # every piece has one way to be formed: no tie can arise
    assert "".join(model[i].text for i in ours) == "".join(model[i].text for i in theirs)


def test_real_sentencepiece_agrees(tmp_path: Path) -> None:
    """The library itself: a model it trained, tokens it makes."""
    spm = pytest.importorskip("sentencepiece")
    (tmp_path / "corpus.txt").write_text("\n".join(layout.CORPUS), encoding="utf-8")
    spm.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(tmp_path / "m"),
        model_type="bpe",
        vocab_size=460,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        character_coverage=1.0,
        user_defined_symbols=["[UNUSED_TOKEN_140]"],
        minloglevel=2,
    )
    real = spm.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    model = read_sentencepiece_model(tmp_path / "m.model")
    assert [p.text for p in model.pieces] == [real.id_to_piece(i) for i in range(len(real))]
    ours = sentencepiece_tokenizer(model, {}, None)
    pieces = [(p.text, p.score, p.kind) for p in model.pieces]

    @settings(max_examples=200)
    @given(text=anything)
    def agree(text: str) -> None:
        text = text.replace("\x00", "")
        wanted = real.encode(text)
        assert ours.encode(text).ids == wanted
        assert sentencepiece_encode(text, pieces) == wanted

    agree()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model_type": 1}, "no BPE"),
        ({"charsmap": b"\x01\x02"}, "normalises"),
        ({"extra_blanks": True}, "extra blanks"),
    ],
)
def test_other_sentencepiece_settings_are_refused(
    options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "m").write_bytes(sentencepiece_file(sentencepiece_pieces(), **options))
    with pytest.raises(CheckpointError, match=reason):
        sentencepiece_tokenizer(read_sentencepiece_model(tmp_path / "m"), {}, None)


def test_what_cannot_be_the_same_is_said(tmp_path: Path) -> None:
    """Characters that are no pieces, and user-defined pieces behind a dummy prefix."""
    (tmp_path / "a").mkdir()
    source = _internlm2(tmp_path / "a", user_defined=True, dummy_prefix=True)
    (warning,) = convert_checkpoint(source, tmp_path / "a" / "out").warnings
    assert "one blank more" in warning
    pieces = [("<unk>", 0.0, 2), ("ab", -1.0, 1), ("b", -2.0, 1), ("bb", -3.0, 1)]
    (tmp_path / "m").write_bytes(sentencepiece_file(pieces))
    (warning,) = differences(read_sentencepiece_model(tmp_path / "m"), {})
    assert warning.startswith("1 pieces")


@settings(max_examples=100)
@given(data=st.data())
def test_a_damaged_sentencepiece_model_is_a_typed_error(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(sentencepiece_file(sentencepiece_pieces()[250:300]))
    content = content[: data.draw(st.integers(0, len(content)))]
    for _ in range(data.draw(st.integers(0, 3))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.model"
    path.write_bytes(content)
    try:
        model = read_sentencepiece_model(path)
        sentencepiece_tokenizer(model, {}, None)
    except CheckpointError:
        pass  # anything else fails the test


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d["added_tokens_decoder"].pop(_id_of(d, "<|im_start|>")), "im_start"),
        (lambda d: d.update(add_eos_token=True), "add_eos_token"),
        (lambda d: d.update(bos_token="<begin>"), "<begin>"),
        (lambda d: d["added_tokens_decoder"].update({"x": {"content": "y"}}), "added tokens"),
        (lambda d: d["added_tokens_decoder"].update({"9000": {"content": "y"}}), "9000"),
    ],
)
def test_unusable_settings_are_typed_errors(
    change: Callable[[dict[str, Any]], Any], reason: str, tmp_path: Path
) -> None:
    source = _internlm2(tmp_path)
    data = json.loads((source / "tokenizer_config.json").read_text())
    change(data)
    data["additional_special_tokens"] = []
    (source / "tokenizer_config.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=reason):
        convert_checkpoint(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _id_of(data: dict[str, Any], word: str) -> str:
    return next(n for n, e in data["added_tokens_decoder"].items() if e["content"] == word)


@pytest.mark.parametrize("missing", ["tokenizer.model", "tokenizer_config.json"])
def test_missing_tokenizer_files_are_named(missing: str, tmp_path: Path) -> None:
    source = _internlm2(tmp_path)
    (source / missing).unlink()
    with pytest.raises(CheckpointError, match=missing):
        convert_checkpoint(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer.json", "{}", "cannot be built"),
        ("tokenizer.json", "[", "cannot be read"),
        ("tokenizer.json", None, "merges.txt"),
        ("tokenizer_config.json", '{"added_tokens_decoder": 3}', "added tokens"),
        ("vocab.json", '{"a": 0}', r"cannot be built|special token"),
    ],
)
def test_damaged_qwen2_files_are_typed_errors(
    name: str, content: str | None, reason: str, tmp_path: Path
) -> None:
    source = _qwen2(tmp_path, fast=name == "tokenizer.json")
    if content is None:
        (source / name).unlink()
        (source / "merges.txt").unlink()
    else:
        (source / name).write_text(content)
    with pytest.raises(CheckpointError, match=reason):
        convert_checkpoint(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_merges_of_one_word_are_refused(tmp_path: Path) -> None:
    source = _qwen2(tmp_path, fast=False)
    (source / "merges.txt").write_text("#version: 0.2\nalone\n")
    with pytest.raises(CheckpointError, match="not two tokens"):
        convert_checkpoint(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d["model"]["vocab"].update({"minus": d["model"]["vocab"].pop("-")}), "'-'|`-`"),
        (lambda d: d["model"]["vocab"].update({"far": 5000}), "moves the ids"),
        (lambda d: d["added_tokens"].pop(), None),
        (lambda d: _added(d, "<img>").update(content="<image>"), "<img>"),
    ],
)
def test_a_tokenizer_that_cannot_score_is_refused(
    change: Callable[[dict[str, Any]], Any], reason: str | None, tmp_path: Path
) -> None:
    source = _qwen2(tmp_path, fast=True)
    data = json.loads((source / "tokenizer.json").read_text())
    change(data)
    (source / "tokenizer.json").write_text(json.dumps(data))
    if reason is None:  # a token that scoring does not need
        convert_checkpoint(source, tmp_path / "out")
        return
    with pytest.raises(CheckpointError, match=reason):
        convert_checkpoint(source, tmp_path / "out")


def _added(data: dict[str, Any], word: str) -> dict[str, Any]:
    return next(token for token in data["added_tokens"] if token["content"] == word)


def test_more_tokens_than_rows_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    layout.write_qwen2_tokenizer(source)
    _finished(source, layout.VERSIONS["v1.1"], 100)
    with pytest.raises(CheckpointError, match="the model's embedding 100 rows"):
        convert_checkpoint(source, tmp_path / "out")


def test_two_ids_for_one_token_are_refused(tmp_path: Path) -> None:
    source = _internlm2(tmp_path)
    (source / "added_tokens.json").write_text('{"<img>": 7}')
    with pytest.raises(CheckpointError, match="has the ids"):
        convert_checkpoint(source, tmp_path / "out")
