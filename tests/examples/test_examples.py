"""The examples run, and do what they say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VPRM_SEARCH_CACHE", str(tmp_path / "cache"))


def test_every_example_is_tested_here() -> None:
    tested = set(re.findall(r'_load\("(\w+)"\)', Path(__file__).read_text()))
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested


@pytest.mark.slow
def test_tools_are_called_for_better_with_a_reward_model(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = _load("06_agent_chart_tools").main(12)
    plain, best_of, searched = (table[way] for way in ("plain agent", "middleware", "search"))
    assert min(best_of[0], searched[0]) > plain[0]
    assert plain[3] == 0 < best_of[3]
    assert best_of[1] == pytest.approx(
        4 * best_of[2] + 4
    )  # four candidates a call, one of them runs
    assert "simulated caller" in capsys.readouterr().out


def test_search_finds_an_answer_and_scores_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    tree = _load("01_search_tiny").search()
    tree.check()
    assert tree.finished()
    scored = [r for r in tree if r.text and r.status != "failed"]
    assert all(r.score is not None and 0 <= r.score <= 1 for r in scored)
    out = capsys.readouterr().out
    assert "round 1: 8 steps" in out
    assert "input_tokens" in out


def test_the_agent_retries_until_the_verifier_is_content_or_retries_are_used_up(
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = _load("02_verifier_in_agent")
    verdict = module.main()
    retries = capsys.readouterr().out.count("retry: ")
    assert verdict["outcome"] in ("passed", "failed")
    assert verdict["outcome"] == "passed" or retries == 3
    assert all(0 <= step["score"] <= 1 for step in verdict["steps"])


def test_the_agent_gives_up_on_an_unreachable_threshold(
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = _load("02_verifier_in_agent")
    problem = module.generate("tiles", "test", 1)
    agent = module.build_agent(threshold=1.0, max_retries=2)
    state = agent.invoke(
        {"messages": [module.image_message(problem.question, module.render(problem))]}
    )
    assert state["vprm"]["outcome"] == "failed"
    assert capsys.readouterr().out.count("retry: ") == 2


def test_a_resumed_search_grows_the_undisturbed_tree(tmp_path: Path) -> None:
    folder = tmp_path / "search"
    folder.mkdir()
    resumed, undisturbed = _load("03_resume_after_crash").main(folder)
    assert resumed == undisturbed
    stored = (folder / "search.sqlite").read_bytes()
    assert b"sha256-" in stored
    assert b"\x89PNG" not in stored  # nor in base64:
    assert b"iVBORw0KGgo" not in stored


def test_the_served_policy_is_built_without_a_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    _load("04_openai_server_policy").main()
    out = capsys.readouterr().out
    for node in ("ingest", "plan", "propose", "score", "answer"):
        assert node in out


def test_a_chain_over_a_picture_answers_by_a_search(capsys: pytest.CaptureFixture[str]) -> None:
    alone, found = _load("05_chat_model").main()
    assert "Answer: " in alone
    assert found.endswith("Answer: 34")
    assert capsys.readouterr().out.endswith("right: 34\n")


def test_the_chain_is_short() -> None:
    assert len((EXAMPLES / "05_chat_model.py").read_text().splitlines()) <= 40


def test_the_serve_demo_serves_both_models_on_loopback_only() -> None:
    """`tests/serving/test_production.py` runs the same set-up; here only what would be started."""
    module = _load("serve_demo")
    prm = module.prm_command("python3", 8001).argv
    policy = module.policy_command("python3", 8002).argv
    for argv, port in ((prm, "8001"), (policy, "8002")):
        assert argv[:2] == ("python3", "-m")
        assert argv[argv.index("--host") + 1] == "127.0.0.1"
        assert argv[argv.index("--port") + 1] == port
        assert "--trust-remote-code" not in argv
    assert "--io-processor-plugin" in prm
    assert "--runner" not in policy
