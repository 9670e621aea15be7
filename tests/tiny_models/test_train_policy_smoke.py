"""The whole recipe of the tiny policy, a few steps of each stage: it runs, learns and resumes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from examples.tiny_models.model import build_model, deepen, save_checkpoint
from examples.tiny_models.muon import orthogonalise
from examples.tiny_models.policy_batches import (
    IGNORED,
    BatchMaker,
    SymbolIds,
    boards,
    symbolic_features,
)
from examples.tiny_models.policy_stages import LanguagePlan, Schedule, SolutionPlan, VisionPlan
from examples.tiny_models.tokenizer import build_tokenizer, policy_prompt
from examples.tiny_models.train_policy import PolicyPlan, train_policy
from vprm_search.tiny.sampler import load_checkpoint, pixel_values
from vprm_search.tiny.world import FAMILIES, generate, render

pytestmark = pytest.mark.slow

TOKENIZER = build_tokenizer()
SMOKE = PolicyPlan(
    language=LanguagePlan(schedule=Schedule(steps=3), rows=4, arithmetic_rows=2),
    vision=VisionPlan(schedule=Schedule(steps=3), pictures=4),
    practice=SolutionPlan(
        schedule=Schedule(steps=2), rows=2, arithmetic_rows=2, checked_problems=2
    ),
    sight=VisionPlan(schedule=Schedule(steps=3), pictures=4),
    trust=SolutionPlan(schedule=Schedule(steps=2), rows=2, arithmetic_rows=2, checked_problems=2),
    solutions=SolutionPlan(
        schedule=Schedule(steps=2), rows=2, arithmetic_rows=2, checked_problems=2
    ),
    problems=2,
    samples=2,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny")
    train_policy(out, SMOKE, seed=3)
    return out


def losses(out: Path, folder: str, name: str) -> list[float]:
    lines = (out / "policy_stages" / folder / "metrics.jsonl").read_text().splitlines()
    return [record[name] for line in lines if name in (record := json.loads(line))]


def test_both_policies_are_installed_with_their_measurements(trained: Path) -> None:
    for name in ("policy", "policy_strong"):
        record = json.loads((trained / name / "validation.json").read_text())
        assert set(record["pass_at_1"]) == set(FAMILIES)
        assert record["split"] == "validation"
        assert (trained / name / "model.safetensors").stat().st_size < 2_000_000


def test_progress_is_recorded(trained: Path) -> None:
    assert losses(trained, "logs", "tiles_gold")


def test_a_second_run_resumes_and_changes_nothing(trained: Path) -> None:
    weights = trained / "policy_strong" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    train_policy(trained, SMOKE, seed=3)
    assert weights.stat().st_mtime_ns == before


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights(trained: Path, tmp_path: Path) -> None:
    train_policy(tmp_path, SMOKE, seed=3)
    one = load_checkpoint(trained / "policy_strong").state_dict()
    other = load_checkpoint(tmp_path / "policy_strong").state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_deeper_copy_computes_the_same_function() -> None:
    model = build_model(TOKENIZER, seed=1).eval()
    deeper = deepen(model, 2).eval()
    problem = generate("tiles", "test", 0)
    ids = TOKENIZER(policy_prompt(problem.question), return_tensors="pt")["input_ids"]
    pixels = pixel_values([render(problem)])
    with torch.no_grad():
        expected = model(input_ids=ids, pixel_values=pixels).logits
        assert torch.equal(deeper(input_ids=ids, pixel_values=pixels).logits, expected)
    assert deeper.config.text_config.num_hidden_layers == 5
    assert model.config.text_config.num_hidden_layers == 3


def test_a_checkpoint_reads_back_and_is_replaced_whole(tmp_path: Path) -> None:
    for seed in (1, 2):
        model = build_model(TOKENIZER, seed=seed)
        save_checkpoint(model, TOKENIZER, tmp_path / "model")
        read = load_checkpoint(tmp_path / "model").state_dict()
        for name, value in model.state_dict().items():
            assert torch.equal(read[name], value.half().float())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_building_a_model_keeps_the_global_random_state() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    build_model(TOKENIZER, seed=9)
    assert torch.equal(torch.rand(1), expected)


def test_pieces_of_a_batch_encode_like_the_whole_text() -> None:
    problem = generate("tiles-long", "train", 5)
    batch = BatchMaker(TOKENIZER).solutions([problem])
    text = policy_prompt(problem.question) + problem.solution + "<|im_end|>"
    assert batch.ids[0].tolist() == TOKENIZER(text, add_special_tokens=False)["input_ids"]
    kept = batch.targets[0] != IGNORED
    assert TOKENIZER.decode(batch.ids[0][kept]) == problem.solution + "<|im_end|>"


def test_a_symbolic_picture_says_colour_and_digit_in_the_right_cells() -> None:
    problems = [generate(family, "train", 1) for family in FAMILIES]
    embedding = torch.eye(len(TOKENIZER))
    symbols = SymbolIds(TOKENIZER)
    features = symbolic_features(embedding, symbols, boards(problems))
    for row, problem in enumerate(problems):
        cells = features[row]
        assert int((cells[:, symbols.placeholder] == 1).sum()) == 16 - len(problem.names)
        for name, value in zip(problem.names, problem.values, strict=True):
            words = TOKENIZER.encode(f" {name} = {value}")
            assert any(bool((cell[words] == 1).all()) for cell in cells)


@pytest.mark.parametrize("shape", [(5, 8), (8, 5)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, *shape, generator=generator)
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert bool(((values > 0.6) & (values < 1.3)).all())


def test_rates_warm_up_hold_and_decay() -> None:
    schedule = Schedule(steps=100, warmup_steps=10, decay_share=0.5, final_factor=0.1)
    factors = [schedule.factor(step) for step in range(100)]
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:50] == [1.0] * 40
    assert factors[50:] == sorted(factors[50:], reverse=True)
    assert factors[-1] == 0.1
