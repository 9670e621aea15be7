"""Every strategy from the command line."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from tests.cli.conftest import Asked, Run
from vprm_search.cli.options import StrategyName, strategy_of
from vprm_search.errors import ConfigError
from vprm_search.search import DVTS, BeamSearch, BestOfN, Cascade, Lookahead, ParticleFilter


@pytest.mark.parametrize("name", get_args(StrategyName))
def test_every_name_stands_for_a_strategy_and_takes_its_options(name: StrategyName) -> None:
    option = "n" if name == "best-of-n" else "max-depth"
    strategy: Any = strategy_of(name, {}, [f"{option}=7"])
    assert getattr(strategy, option.replace("-", "_")) == 7
    assert strategy_of(name, {}) == type(strategy)()


def test_settings_are_json_or_text_and_go_over_the_flags() -> None:
    found = strategy_of("particles", {}, ["particles=5", "weight=probability"])
    assert found == ParticleFilter(particles=5, weight="probability")
    beam = strategy_of("beam", {"width": 9}, ["width=2", "stop=null", "dedup=false"])
    assert beam == BeamSearch(width=2, stop=None, dedup=False)
    pruned = strategy_of("dvts", {}, ['pruning={"below": 0.25}'])
    assert isinstance(pruned, DVTS)
    assert pruned.pruning.below == 0.25
    adaptive = strategy_of("best-of-n", {"n": 32}, ["confidence=0.95"])
    assert adaptive == BestOfN(32, confidence=0.95)


@pytest.mark.parametrize(
    "name", [n for n in get_args(StrategyName) if n not in ("best-of-n", "auto")]
)
def test_the_aggregation_reaches_every_strategy_that_ranks_paths(name: StrategyName) -> None:
    inside: Any = strategy_of(name, {}, aggregate="min")
    assert inside.aggregate == "min"
    wrapped: Any = strategy_of(name, {}, aggregate="min", lookahead=2, threshold=0.5)
    assert wrapped.strategy.strategy.aggregate == "min"
    given: Any = strategy_of(name, {}, ["aggregate=last"], aggregate="min")
    assert given.aggregate == "last"


def test_best_of_n_ranks_by_the_aggregation_when_it_ranks() -> None:
    assert strategy_of("best-of-n", {}, aggregate="min") == BestOfN()
    adaptive = strategy_of("best-of-n", {}, ["good_enough=0.9"], aggregate="min")
    assert adaptive == BestOfN(good_enough=0.9, aggregate="min")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("rebase", ["effective_share=2"], "--effective-share 2: "),
        ("rebase", ["subtrees=2"], "--subtrees is no option of --strategy rebase; its"),
        ("beam", ["width"], "--set 'width' is not NAME=VALUE"),
        ("mcts", ["simulations=0"], "--simulations 0: "),
        ("dvts", ["aggregate=median"], "median"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    name: StrategyName, settings: list[str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        strategy_of(name, {}, settings)
    assert message in str(caught.value)


def test_lookahead_and_a_strong_policy_wrap_the_strategy() -> None:
    inside = BeamSearch(width=2)
    looking = strategy_of("beam", {"width": 2}, lookahead=3)
    assert looking == Lookahead(strategy=inside, steps=3)
    cascade = strategy_of("beam", {"width": 2}, threshold=0.6)
    assert cascade == Cascade(strategy=inside, threshold=0.6)
    both = strategy_of("beam", {"width": 2}, lookahead=3, threshold=0.6)
    assert both == Cascade(strategy=looking, threshold=0.6)
    with pytest.raises(ConfigError, match="step by step"):
        strategy_of("best-of-n", {}, lookahead=1)


def test_a_cascade_of_the_packaged_models_solves_a_problem(run: Run, asked: Asked) -> None:
    ran = run(
        "solve", *asked.arguments, "--strategy", "dvts", "--set", "subtrees=2", "--set", "expand=2",
        "--strong", "tiny", "--threshold", "0.9", "--json", "--max-candidates", "60",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    nodes = json.loads(ran.out)["tree"]["nodes"]
    policies = {node["policy"] for node in nodes if node.get("policy")}
    assert "draft" in policies
    redone = [n for n in nodes if n.get("reason", "").startswith("redone by strong")]
    assert len(redone) == sum(n.get("role") == "redo" for n in nodes)
