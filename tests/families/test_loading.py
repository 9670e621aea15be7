"""Loading by family: by name, by vprm.json, and what is refused with which words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from examples.tiny_models.packaging import model_path
from tests.families.oracle import PROMPT, FamilyOracle
from tests.families.test_oracle import PICTURES, load
from tests.families.tiny_models import PIXELS, TILES, write_settings
from tests.families.tiny_tokenizers import TOKENIZERS
from tests.scoring.random_internvl import write_checkpoint
from tests.scoring.test_oracle import as_request
from vprm_search.errors import CheckpointError, ConfigError, MissingDependencyError
from vprm_search.scoring import TransformersScorer
from vprm_search.scoring.engine.checkpoint import load_checkpoint
from vprm_search.scoring.families import FAMILIES, ScorerFile, read_scorer_file
from vprm_search.scoring.prompt.layout import PrmLayout
from vprm_search.tiny.weights import weights_path

PATH = ("the red bar is 3", "so x = 2")
TEXT_FAMILIES = sorted(n for n in TOKENIZERS if FAMILIES[n].backbone == "text")


def values(scorer: TransformersScorer, **request: Any) -> list[float | None]:
    images = request.get("images", ())
    result = scorer.score_sync([as_request("What is x?", images, PATH)])[0]
    return [score.value for score in result.scores]


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory, folder_of: Callable[[str], Path]
) -> dict[str, Path]:
    """Return the families' directories without a `vprm.json`, as the public ones are."""
    root = tmp_path_factory.mktemp("plain")
    for name in TOKENIZERS:
        shutil.copytree(folder_of(name), root / name, ignore=shutil.ignore_patterns("vprm.json"))
    return {name: root / name for name in TOKENIZERS}


@pytest.mark.parametrize("name", TEXT_FAMILIES)
def test_a_family_by_name_equals_the_family_in_the_file(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    by_name = load(folders[name], name, family=name)
    filed = shutil.copytree(folders[name], tmp_path / "filed")
    by_file = load(write_settings(filed, name), name)
    assert by_name.checkpoint.family is by_file.checkpoint.family is FAMILIES[name]
    assert values(by_name) == values(by_file)
    assert values(by_name) == pytest.approx(
        FamilyOracle(folders[name], name).score("What is x?", PATH, []), abs=1e-5
    )


def test_a_named_family_replaces_the_one_in_the_file(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("visualprm")
    plain = TransformersScorer.from_pretrained(folder, device="cpu")
    other = TransformersScorer.from_pretrained(
        folder, device="cpu", family="dreamprm-1.5", system_prompt=PROMPT
    )
    assert other.checkpoint.preprocess is not None
    assert plain.identity != other.identity
    assert values(plain) != values(other)
    rule = other.checkpoint.preprocess
    assert rule.tile_size == TILES.tile_size  # of the model's own files, not of the table


def test_files_without_a_family_are_visualprm_and_stay_byte_for_byte() -> None:
    for name in ("prm", "orm", "prm_exact"):
        folder = model_path(name)
        settings = read_scorer_file(folder)
        assert settings.family == "visualprm"
        assert settings.model_dump_json(indent=2) + "\n" == (folder / "vprm.json").read_text()


def test_the_identity_of_a_visualprm_checkpoint_is_what_it_was() -> None:
    """Scores remembered on disk by earlier versions stay valid (computed with version 0.1.0)."""
    try:
        folder = weights_path("prm")
    except CheckpointError as error:
        pytest.skip(str(error))
    found = load_checkpoint(folder, device="cpu").identity
    assert found == "f87038d1b9b69d57fad7b4e2c47868e4499d4b554dcef2e41c6e7c19985e7472"


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"judge"}))
def test_settings_survive_a_file(tmp_path: Path, name: str) -> None:
    settings = ScorerFile.model_validate({"family": name})
    settings.write(tmp_path)
    assert read_scorer_file(tmp_path) == settings
    assert settings.layout == FAMILIES[name].layout
    assert settings.preprocess == FAMILIES[name].images
    minimal = {"version": 1, "family": name}
    (tmp_path / "vprm.json").write_text(json.dumps(minimal))
    assert read_scorer_file(tmp_path) == settings


@pytest.mark.parametrize("name", ["judge", "no-such-family"])
def test_a_family_without_checkpoints_is_refused(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "vprm.json").write_text(json.dumps({"family": name}))
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(tmp_path)


def test_an_unknown_family_lists_the_known_ones(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="math-shepherd"):
        load_checkpoint(folders["rlhflow"], family="nothing")


@pytest.mark.parametrize("name", ["qwen-vl-prm", "dreamprm-1.5"])
def test_an_unpublished_system_prompt_must_be_given(folders: dict[str, Path], name: str) -> None:
    with pytest.raises(ConfigError, match="system_prompt"):
        load_checkpoint(folders[name], family=name)


def test_a_system_prompt_takes_the_place_of_the_familys(folders: dict[str, Path]) -> None:
    one = load(folders["ursa-rm"], "ursa-rm", family="ursa-rm")
    two = load(folders["ursa-rm"], "ursa-rm", family="ursa-rm", system_prompt="Be strict.")
    assert one.identity != two.identity
    assert values(one) != values(two)


def test_a_model_of_another_kind_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="'qwen2'"):
        load_checkpoint(folders["ursa-rm"], family="visualprm")
    with pytest.raises(CheckpointError, match="'internvl'"):
        load_checkpoint(folders["visualprm"], family="rlhflow")


def test_ursas_own_checkpoint_is_refused_with_the_reason(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["ursa-rm"], tmp_path / "ursa")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "ursa"}))
    with pytest.raises(CheckpointError, match="SAM \\+ SigLIP"):
        load_checkpoint(folder, family="ursa-rm")


@pytest.mark.parametrize("name", ["qwen2.5-math-prm", "skywork-o1-prm", "ursa-rm"])
def test_a_missing_or_wrong_head_is_refused(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(folders[name], tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    head = FAMILIES[name].head
    last = max(key for key in tensors if key.startswith(head) and key.endswith("weight"))
    tensors[last] = torch.randn(3, 64)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="outputs are needed"):
        load_checkpoint(folder, family=name)
    kept = {key: value for key, value in tensors.items() if not key.startswith(head)}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="no scoring head"):
        load_checkpoint(folder, family=name)


def test_weights_that_are_missing_beside_a_head_are_noticed(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["skywork-o1-prm"], tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors[next(key for key in tensors if key.endswith("q_proj.weight"))]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="do not fit"):
        load_checkpoint(folder, family="skywork-o1-prm")


def test_a_path_ends_where_a_sliding_window_would_begin(folders: dict[str, Path]) -> None:
    scorer = load(folders["math-shepherd"], "math-shepherd", family="math-shepherd")
    assert scorer.checkpoint.max_tokens == 1024  # of 4096 positions
    oracle = FamilyOracle(folders["math-shepherd"], "math-shepherd")
    long = ("so x = 2 " * 120).strip()
    result = scorer.score_sync([as_request("What is x?", (), (long,))])[0]
    expected = oracle.score("What is x?", (long,), [])
    assert [s.value for s in result.scores] == pytest.approx(expected, abs=1e-5)
    too_long = scorer.score_sync([as_request("What is x?", (), (long * 10,))])[0].scores[0]
    assert too_long.value is None
    assert too_long.reason.startswith("too_long")


def test_other_patches_than_the_models_are_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["qwen-vl-prm"], tmp_path / "model")
    rule = PIXELS.model_copy(update={"patch_size": 16})
    data = {"family": "qwen-vl-prm", "preprocess": json.loads(rule.model_dump_json())}
    (folder / "vprm.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="patches"):
        load_checkpoint(folder, system_prompt=PROMPT)


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_a_device_map_changes_no_score(folder_of: Callable[[str], Path], device_map: Any) -> None:
    pytest.importorskip("accelerate")
    for name in ("visualprm", "qwen-vl-prm", "ursa-rm"):
        images = PICTURES[1:2] if FAMILIES[name].images else ()
        options = {"device_map": device_map, "dtype": "float32"}
        if FAMILIES[name].system_prompt_source:
            options["system_prompt"] = PROMPT
        spread = TransformersScorer.from_pretrained(folder_of(name), **options)
        exact = values(load(folder_of(name), name), images=images)
        assert values(spread, images=images) == pytest.approx(exact, abs=1e-3)


@pytest.mark.parametrize("options", [{"device_map": "auto"}, {"quantization": "8bit"}])
def test_missing_libraries_are_named(
    folders: dict[str, Path], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vprm_search.scoring.engine import checkpoint

    monkeypatch.setattr(checkpoint, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="accelerate"):
        load_checkpoint(folders["rlhflow"], family="rlhflow", **options)


def test_contradictory_devices_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="one of them"):
        load_checkpoint(folders["rlhflow"], family="rlhflow", device="cpu", device_map="auto")


@pytest.mark.slow
def test_bfloat16_is_close_for_every_family(folder_of: Callable[[str], Path]) -> None:
    for name in TOKENIZERS:
        folder = folder_of(name)
        images = PICTURES[1:2] if FAMILIES[name].images else ()
        exact = values(load(folder, name), images=images)
        rough = values(load(folder, name, dtype="bfloat16"), images=images)
        assert rough == pytest.approx(exact, abs=0.2), name
        assert rough != exact


def test_a_layout_given_by_the_caller_wins(folders: dict[str, Path]) -> None:
    layout = PrmLayout(system_prompt=None)
    found = load_checkpoint(folders["visualprm"], family="visualprm", layout=layout)
    assert found.builder.layout == layout


def test_the_table_is_complete() -> None:
    for name, row in FAMILIES.items():
        assert row.name == name
        assert row.public
        assert bool(row.head) == (row.readout in ("two_classes", "one_value"))
        if row.layout is not None:
            assert row.layout.reads_images == (row.images is not None)
            paired = row.layout.plus_word is not None
            assert paired == (row.readout in ("token_pair", "full_vocabulary"))
            no_prompt = getattr(row.layout, "system_prompt", None) is None
            assert not row.system_prompt_source or no_prompt
