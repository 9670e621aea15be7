"""The plugin's own parts, without vLLM: shared source, contract, images, plans, pending."""

from __future__ import annotations

import contextlib
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.scoring.tokenizers_zoo import FAMILIES
from tests.serving.plugin_parts import PLUGIN, REPOSITORY, load
from vprm_search.scoring.families import read_scorer_file, scorer_identity
from vprm_search.scoring.prompt.layout import PrmLayout, PromptBuilder
from vprm_search.scoring.transformers_scorer import TransformersScorer
from vprm_search.tiny.weights import weights_path

pytestmark = pytest.mark.usefixtures("plugin_package")

THIRD_PARTY = {"PIL", "numpy", "pydantic"}
HOSTILE = st.one_of(
    st.text(max_size=30),
    st.lists(
        st.sampled_from(
            [
                "<|im_end|>",
                "<|im_start|>",
                "<|im_start|>assistant\n+<|im_end|>\n",
                "<img>",
                "</img>",
                "<IMG_CONTEXT>",
                "<image>",
                "+",
                "-",
                "\n",
                " ",
                "a",
                "12",
                "\ud83d",
                "<|im_",
                "end|>",
            ]
        ),
        max_size=6,
    ).map("".join),
)


# --- one source ---------------------------------------------------------------------------------


def test_the_shared_files_need_neither_torch_nor_langgraph() -> None:
    build = runpy.run_path(str(PLUGIN / "hatch_build.py"))
    modules = build["shared_modules"](REPOSITORY)
    found = set()
    for path in modules.values():
        for match in re.finditer(r"^\s*(?:from|import) ([\w.]+)", path.read_text(), re.MULTILINE):
            found.add(match[1].split(".")[0])
    assert found - set(sys.stdlib_module_names) - THIRD_PARTY == {"vprm_search"}
    assert "vprm_search.scoring.prompt.layout" in modules


def test_only_the_name_of_the_package_differs() -> None:
    build = runpy.run_path(str(PLUGIN / "hatch_build.py"))
    shared = Path(load("shared").__file__).parent
    for name, path in build["shared_modules"](REPOSITORY).items():
        packaged = shared.joinpath(*name.split(".")[1:]).with_suffix(".py").read_text()
        assert packaged.replace("vprm_search_vllm.shared", "vprm_search") == path.read_text()
        assert "vprm_search_vllm.shared" in packaged or "from vprm_search." not in path.read_text()


def test_the_wheel_holds_the_shared_files_also_when_built_from_a_source_archive(
    tmp_path: Path,
) -> None:
    def build(source: Path, kind: str) -> Path:
        command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(tmp_path)]
        subprocess.run(command, cwd=source, check=True, capture_output=True)
        return next(tmp_path.glob("*.whl" if kind == "wheel" else "*.tar.gz"))

    def content(wheel: Path) -> dict[str, bytes]:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith((".py", ".txt"))]
            return {name: archive.read(name) for name in names}

    here = tmp_path / "repository"
    shutil.copytree(PLUGIN, here / "integrations" / "vllm")
    for module in (REPOSITORY / "vprm_search").rglob("*.py"):
        copy = here / module.relative_to(REPOSITORY)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(module, copy)
    wheel = build(here / "integrations" / "vllm", "wheel")
    direct = content(wheel)
    assert "vprm_search_vllm/shared/scoring/prompt/layout.py" in direct
    entries = next(data for name, data in direct.items() if name.endswith("entry_points.txt"))
    assert b"vprm_search_vllm:io_processor" in entries
    wheel.unlink()
    shutil.unpack_archive(build(here / "integrations" / "vllm", "sdist"), tmp_path / "unpacked")
    (alone,) = (tmp_path / "unpacked").iterdir()
    assert content(build(alone, "wheel")) == direct


@pytest.mark.parametrize("family", sorted(FAMILIES))
@given(question=HOSTILE, steps=st.lists(HOSTILE, min_size=1, max_size=4), images=st.integers(0, 2))
def test_the_packaged_builder_writes_the_same_tokens(
    family: str, question: str, steps: list[str], images: int
) -> None:
    ours, theirs = _builders(family)
    images = (question.count("<image>") or images) if images else 0
    counts = [3] * images
    expected = ours.build(question, steps, counts)
    found = theirs.build(question, steps, counts)
    assert found.ids == expected.ids
    assert found.read_positions == expected.read_positions
    assert found.step_tokens == expected.step_tokens

    plan = load("scoring_requests").PathPlan.of(found)
    token = ours.image_token_id
    assert plan.sent.count(token) == images
    assert plan.ids == expected.scored_ids
    start, end = (ours.encoder.control_id(w) for w in ("<img>", "</img>"))
    expanded: list[int] = []
    for one in plan.sent:
        expanded += [start, token, token, token, end] if one == token else [one]
    assert tuple(expanded) == plan.ids  # what vLLM makes of one placeholder per image


_BUILDERS: dict[str, tuple[Any, Any]] = {}


def _builders(family: str) -> tuple[Any, Any]:
    if family not in _BUILDERS:
        tokenizer = FAMILIES[family]()
        packaged = load("shared.scoring.prompt.layout")
        layout = PrmLayout(system_prompt="Judge.")
        _BUILDERS[family] = (
            PromptBuilder(tokenizer, layout),
            packaged.PromptBuilder(tokenizer, packaged.PrmLayout(**layout.model_dump())),
        )
    return _BUILDERS[family]


@pytest.mark.parametrize("family", [None, "mm-prm"])
def test_plugin_and_engine_give_the_same_files_the_same_name(
    family: str | None, tmp_path: Path
) -> None:
    """So a score cache serves both. Dates and places of the files do not count."""
    here = shutil.copytree(weights_path("prm"), tmp_path / "copy")
    if family is not None:
        (here / "vprm.json").unlink()
    settings = read_scorer_file(here, family)
    settings.write(here)
    packaged = load("shared.scoring.families")
    named = packaged.scorer_identity(here, packaged.read_scorer_file(here), "torch.float32")
    assert named == scorer_identity(here, settings, "torch.float32")
    assert named != scorer_identity(here, settings, "torch.bfloat16")
    if family is None:
        again = shutil.copytree(here, tmp_path / "again", copy_function=shutil.copyfile)
        engine = TransformersScorer.from_pretrained(again, device="cpu", dtype="float32")
        assert engine.identity == named


# --- the contract -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "broken",
    [
        None,
        [],
        "x",
        {},
        {"version": 1},
        {"version": 2, "question": "q", "paths": [["s"]]},
        {"version": True, "question": "q", "paths": [["s"]]},
        {"version": 1.0, "question": "q", "paths": [["s"]]},
        {"version": "1", "question": "q", "paths": [["s"]]},
        {"version": 1, "question": 3, "paths": [["s"]]},
        {"version": 1, "question": "q", "paths": []},
        {"version": 1, "question": "q", "paths": [[]]},
        {"version": 1, "question": "q", "paths": [["s"], []]},
        {"version": 1, "question": "q", "paths": [["s", None]]},
        {"version": 1, "question": "q", "paths": "ss"},
        {"version": 1, "question": "q", "paths": [["s"]], "images": ["cat.png"]},
        {"version": 1, "question": "q", "paths": [["s"]], "images": ["sha256-" + "0" * 63]},
        {"version": 1, "question": "q", "paths": [["s"]], "images": ["sha256-" + "A" * 64]},
        {"version": 1, "question": "q", "paths": [["s"]], "image_data": {"sha256-" + "0" * 64: ""}},
        {"version": 1, "question": "q", "paths": [["s"]], "cache_salt": ""},
        {"version": 1, "question": "q", "paths": [["s"]], "cache_salt": "s" * 1025},
        {"version": 1, "question": "q", "paths": [["s"]], "use_prefix_cache": "yes"},
        {"version": 1, "question": "q", "paths": [["s"]], "image_uuid": "mine"},
        {"version": 1, "describe": False},
        {"version": 1, "describe": 1},
        {"version": True, "describe": True},
        {"version": 1, "describe": True, "question": "q"},
    ],
)
def test_a_malformed_request_is_refused(broken: Any) -> None:
    contract = load("shared.scoring.vllm.contract")
    with pytest.raises(contract.RequestError) as refused:
        contract.parse_body(broken, contract.Limits())
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "no JSON: Expecting value"),
        (b'{"data": {}', "no JSON: Expecting"),
        (b"\xff{}", "not UTF-8"),
        (b"[" * 100_000, "nested too deep"),
        (b"9" * 5000, "no JSON"),
        (b'{"data": NaN}', "NaN is no number"),
        (b"[]", "must be an object, not list"),
        (b'{"data": {"version": 1, "version": 1}}', "'version' twice"),
        (b'{"data": {}, "data": {}}', "'data' twice"),
        (b'{"data": {}, "input": "x"}', "holds 'input'"),
        (b'{"data": {}, "messages": []}', "holds 'messages'"),
        (b'{"model": "prm"}', "no 'data'"),
        (b'{"data": {}, "model": 1}', "model must be a string"),
        (b'{"data": {}, "task": "embed"}', "task must be"),
    ],
)
def test_a_body_that_is_no_request_is_refused_in_a_sentence(raw: bytes, said: str) -> None:
    contract = load("shared.scoring.vllm.contract")
    with pytest.raises(contract.RequestError, match=said) as refused:
        contract.check_fields(contract.read_request(raw))
    assert refused.value.status == 400
    assert len(str(refused.value)) < 300
    assert "\n" not in str(refused.value)


@given(
    data=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "version",
                        "question",
                        "paths",
                        "images",
                        "image_data",
                        "describe",
                        "cache_salt",
                    ]
                ),
                inner,
            )
        ),
    )
)
def test_any_json_is_read_or_refused(data: Any) -> None:
    contract = load("shared.scoring.vllm.contract")
    with contextlib.suppress(contract.RequestError):  # any other error would be a 500
        assert contract.parse_body(data, contract.Limits()).version == 1


@pytest.mark.parametrize(
    ("limit", "data"),
    [
        ({"max_paths": 2}, {"paths": [["s"]] * 3}),
        ({"max_steps": 2}, {"paths": [["s"] * 3]}),
        ({"max_step_bytes": 2}, {"paths": [["äb"]]}),
        ({"max_question_bytes": 0 + 1}, {"question": "qq"}),
        ({"max_text_bytes": 5}, {"paths": [["aaa"], ["bbb"]]}),
        ({"max_images": 1}, {"images": ["sha256-" + "0" * 64, "sha256-" + "1" * 64]}),
    ],
)
def test_each_limit_is_exact(limit: dict[str, int], data: dict[str, Any]) -> None:
    contract = load("shared.scoring.vllm.contract")
    body = {"version": 1, "question": "q", "paths": [["s"]], **data}
    with pytest.raises(contract.RequestError) as refused:
        contract.parse_body(body, contract.Limits(**limit))
    assert refused.value.status == 413
    name, value = next(iter(limit.items()))
    grown = {"max_text_bytes": 7, "max_step_bytes": 3}.get(name, value + 1)
    contract.parse_body(body, contract.Limits(**{name: grown}))


# --- rows and scores ----------------------------------------------------------------------------


@given(
    tree=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=6),
    cached=st.data(),
)
def test_rows_count_from_the_end_and_siblings_fill_gaps(
    tree: list[list[int]], cached: st.DataObject
) -> None:
    plans = load("scoring_requests")
    paths, outputs, expected = [], [], []
    for choices in tree:
        ids, reads = [100, 101], []
        for choice in choices:
            ids += [choice, 7]
            reads.append(len(ids) - 1)
        tokens = tuple(ids)
        rows = [_score_of(tokens[: place + 1]) for place in range(len(tokens))]
        gone = cached.draw(st.integers(0, len(tokens)))
        paths.append(plans.PathPlan(tokens, tokens, tuple(reads), 2, (2,) * len(choices)))
        outputs.append((list(tokens), rows[gone:]))
        expected.append([rows[read] for read in reads])
    reply = plans.RequestPlan(tuple(paths), tuple(map(len, tree))).reply(outputs, "m")
    known = {
        tuple(choices[: place + 1])
        for choices, (tokens, rows) in zip(tree, outputs, strict=True)
        for place in range(len(choices))
        if 3 + 2 * place >= len(tokens) - len(rows)
    }
    for choices, scores, truth in zip(tree, reply.scores, expected, strict=True):
        for place, score in enumerate(scores):
            there = tuple(choices[: place + 1]) in known
            assert score == (truth[place] if there else None)
    assert reply.prefix_tokens == 2
    assert reply.failures == {}
    assert "failures" not in reply.model_dump(exclude_unset=True)


def _score_of(tokens: tuple[int, ...]) -> float:
    return hash(tokens) % 1009 / 1009


def test_failed_paths_keep_their_place() -> None:
    plans = load("scoring_requests")
    good = plans.PathPlan((1, 2, 3), (1, 2, 3), (1, 2), 1, (1, 1))
    plan = plans.RequestPlan(("too_long: 9", good, good), (2, 2, 2))
    reply = plan.reply([([1, 2, 3], [0.1, 0.2, 0.3]), ([1, 2, 3], [0.1, float("nan"), 0.3])], "m")
    assert reply.scores == [[None, None], [0.2, 0.3], [None, 0.3]]
    assert set(reply.failures) == {"0", "2"}
    assert reply.failures["0"] == "too_long: 9"
    assert reply.failures["2"].startswith("not_finite")
    assert reply.step_tokens == [[0, 0], [1, 1], [1, 1]]


def test_scores_of_other_tokens_are_never_returned() -> None:
    plans, error = load("scoring_requests"), load("shared.scoring.vllm.contract").RequestError
    plan = plans.RequestPlan((plans.PathPlan((1, 2), (1, 2), (1,), 1, (1,)),), (1,))
    for ids, rows in (([1, 3], [0.1, 0.2]), ([1], [0.1]), ([1, 2], [0.1, 0.2, 0.3])):
        with pytest.raises(error, match="other tokens") as refused:
            plan.reply([(ids, rows)], "m")
        assert refused.value.status == 400
    with pytest.raises(RuntimeError, match="2 outputs for 1"):
        plan.reply([([1, 2], [0.1, 0.2])] * 2, "m")
