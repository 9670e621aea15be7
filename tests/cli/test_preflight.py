"""`vprm-search preflight` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Asked, Run
from vprm_search import PreflightReport
from vprm_search.cli.options import load_scorer
from vprm_search.compare.signals import Signal
from vprm_search.tiny.world import generate, render


def test_a_synthetic_world_gets_an_advice_and_a_report(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    ran = run("preflight", "--world", "synthetic", "--difficulty", "easy", "--out", str(out))
    assert ran.code == 0, ran.err
    assert "20 problems, 320 solutions" in ran.out
    assert "advice: search." in ran.out
    report = PreflightReport.load(out)
    assert report.advice == "search"
    for name in report.signals:
        assert name in ran.out


def test_a_file_needs_no_answers(run: Run, tmp_path: Path) -> None:
    lines = []
    for number in range(8):
        problem = generate("tiles", "validation", 700 + number)
        render(problem).save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"question": problem.question, "image": f"{number}.png"}))
    file = tmp_path / "problems.jsonl"
    file.write_text("\n".join(lines))
    arguments = ("preflight", "--problems", str(file), "--samples", "4", "--temperature", "1.2")
    ran = run(*arguments, "--json")
    assert ran.code == 0, ran.err
    seen = json.loads(ran.out)
    assert (seen["samples"], seen["policy"]) == (32, "tiny")
    blank = run(*arguments, "--json", "--blank-images")
    assert json.loads(blank.out)["scorer"].endswith("/blank")
    assert json.loads(blank.out)["signals"] != seen["signals"]
    assert "no problem" not in ran.err
    labelled = run("compare", "--problems", str(file), "--out", str(tmp_path / "out"))
    assert "row 1, column answer: there is no right answer" in labelled.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--policy", "openai:m"), "--policy is for --problems FILE"),
        (("--world", "mars"), "not known"),
        (("--problems", "2"), "2 problems with 16 solutions each tell too little"),
        (("--world", "tiny", "--problems", "nowhere.jsonl"), "there is no such file"),
    ],
)
def test_a_wrong_option_is_one_line(run: Run, arguments: tuple[str, ...], message: str) -> None:
    ran = run("preflight", "--world", "synthetic", *arguments)
    assert ran.code == 1
    assert message in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_solve_obeys_a_report_of_its_scorer(run: Run, asked: Asked, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    signal = Signal(value=0.5, low=0.4, high=0.6)
    report = PreflightReport(
        advice="majority",
        sentence="No sign.",
        signals={"preference": signal},
        problems=20,
        samples=320,
        scorer=load_scorer("tiny").identity,  # type: ignore[attr-defined]
    )
    report.save(file)
    arguments = ("solve", *asked.arguments, "--json", "--max-candidates", "4")
    obeyed = run(*arguments, "--preflight", str(file))
    assert obeyed.code == 0, obeyed.err
    advised = run(*arguments, "--advice", "majority")
    assert json.loads(obeyed.out)["tree"] == json.loads(advised.out)["tree"]
    assert json.loads(run(*arguments).out)["tree"] != json.loads(advised.out)["tree"]
    both = run(*arguments, "--preflight", str(file), "--advice", "vote")
    assert "leave one of them out" in both.err
    report.model_copy(update={"scorer": "another"}).save(file)
    other = run(*arguments, "--preflight", str(file))
    assert other.code == 1
    assert "is about the scorer 'another'" in other.err
