"""`vprm-search check`: parity with the published code, shown on original-format weights.

The published code cannot be had here. Its place takes an independent forward pass over the original
files (`tests/checkpoints/original_forward.py`) behind the one method that the script calls.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.checkpoints.original_forward import OriginalModel, internlm2_encoder, qwen2_encoder
from tests.checkpoints.original_layout import VERSIONS, sentencepiece_pieces, write_original
from tests.cli.conftest import Run, run  # noqa: F401
from tests.scoring.oracle import render
from vprm_search.checkpoints import convert_checkpoint
from vprm_search.scoring.parity import ParityReference, parity_cases

SCRIPT = Path(__file__).parents[2] / "integrations" / "reference" / "reference_scores.py"


def script() -> Any:
    """Load the script as a module, as `python reference_scores.py` would."""
    spec = importlib.util.spec_from_file_location("reference_scores", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class PublishedModel:
    """Original weights behind the method of the published code, with a forward of ours."""

    def __init__(self, original: OriginalModel) -> None:
        self.original = original
        side = original.config["vision_config"]["image_size"]
        self.config = SimpleNamespace(force_image_size=side)
        patches = side // original.config["vision_config"]["patch_size"]
        self.per_tile = patches * patches // 4

    def parameters(self) -> Any:
        return iter(self.original.weights.values())

    def forward(self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None) -> torch.Tensor:
        return self.original.logits(input_ids[0].tolist(), pixel_values)

    def generate_steps_with_soft_score(
        self,
        tokenizer: Any,
        question: str,
        response: str,
        pixel_values: torch.Tensor | None,
        num_patches_list: Sequence[int] | None = None,
    ) -> list[dict[str, Any]]:
        steps = response.split("\n\n")
        counts = list(num_patches_list or ())
        ids = self.original.encode(
            render(question, steps, [count * self.per_tile for count in counts])
        )
        logits = self.forward(input_ids=torch.tensor([ids]), pixel_values=pixel_values)
        role = self.original._bare("<|im_start|>assistant\n")
        mark = self.original._bare("<|im_start|>assistant\n+<|im_end|>\n")
        found = [i for i in range(len(ids)) if ids[i : i + len(mark)] == mark]
        assert len(found) == len(steps)
        words = [self.original._word("+"), self.original._word("-")]
        rows = torch.softmax(logits[[i + len(role) - 1 for i in found]][:, words], dim=-1)
        values = rows[:, 0].tolist()
        return [{"step": s, "score": v} for s, v in zip(steps, values, strict=True)]


@pytest.fixture(scope="module", params=["v1.0", "v1.1"])
def folders(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Return a converted checkpoint, and the reference file that its original gives."""
    root = tmp_path_factory.mktemp("parity")
    shape = VERSIONS[request.param]
    source = write_original(root / "src", shape)
    convert_checkpoint(source, root / "prm")
    if shape.llm == "internlm2":
        encode = internlm2_encoder(source, sentencepiece_pieces())
    else:
        encode = qwen2_encoder(source)
    cases = json.loads(ParityReference(cases=parity_cases()).dumps())["cases"]
    model = PublishedModel(OriginalModel(source, encode))
    told = script().reference(model, None, cases, model="tiny", versions=script().versions())
    (root / "reference.json").write_text(json.dumps(told, ensure_ascii=False))
    return root / "prm", root / "reference.json"


def test_every_case_agrees_with_the_published_way(run: Run, folders: tuple[Path, Path]) -> None:  # noqa: F811
    prm, reference = folders
    held = ParityReference.model_validate_json(reference.read_text())
    assert all(case.token_ids for case in held.cases if not case.hostile)
    ran = run("check", str(prm), "--reference", str(reference), "--tolerance", "1e-5", "--json")
    found = json.loads(ran.out)["cases"]
    assert [one for one in found if one["trouble"]] == []
    assert ran.code == 0
    assert sum(one["apart"] is not None for one in found) == len(found) - 1  # one is hostile


def test_a_case_that_differs_is_named_with_its_distance(
    run: Run,  # noqa: F811
    folders: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    prm, reference = folders
    told = json.loads(reference.read_text())
    (case,) = [case for case in told["cases"] if case["name"] == "three tiles"]
    case["scores"][1] += 0.25 if case["scores"][1] < 0.5 else -0.25
    case["token_ids"][7] += 1
    (tmp_path / "other.json").write_text(json.dumps(told))
    ran = run("check", str(prm), "--reference", str(tmp_path / "other.json"), "--json")
    assert ran.code == 1
    (wrong,) = [one for one in json.loads(ran.out)["cases"] if one["trouble"]]
    assert wrong["name"] == "three tiles"
    assert wrong["apart"] == pytest.approx(0.25, abs=1e-4)
    assert "step 2: " in wrong["trouble"]
    assert "the prompts part at token 7" in wrong["trouble"]
    shown = run("check", str(prm), "--reference", str(tmp_path / "other.json"))
    assert "1 of 12 cases differ with tiny (float32, python " in shown.out


def test_two_scorers_are_held_against_each_other(run: Run, folders: tuple[Path, Path]) -> None:  # noqa: F811
    prm, _ = folders
    assert run("check", str(prm), "--against", str(prm)).code == 0
    ran = run("check", str(prm), "--against", "tiny")
    assert ran.code == 1
    assert "12 of 12 cases differ" in ran.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name the reward model and what to compare it with"),
        (("tiny",), "name the reward model and what to compare it with"),
        (("tiny", "--reference", "nosuch.json"), "nosuch.json: not a reference"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    run: Run,  # noqa: F811
    arguments: tuple[str, ...],
    said: str,
) -> None:
    ran = run("check", *arguments)
    assert ran.code == 1
    assert said in ran.err


def test_the_cases_are_written_and_read_again(run: Run, tmp_path: Path) -> None:  # noqa: F811
    assert run("check", "--write-cases", str(tmp_path / "cases.json")).code == 0
    text = (tmp_path / "cases.json").read_text()
    assert ParityReference.model_validate_json(text).cases == parity_cases()
