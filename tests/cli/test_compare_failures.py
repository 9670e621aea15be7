"""`vprm-search compare` on servers that fail: counted, shown, never taken for results, repeated."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.cli.conftest import Run
from tests.policy.openai_server import Body, Server
from tests.policy.openai_server import serving as serving_policy
from tests.scoring.vllm_double import Double
from tests.scoring.vllm_double import serving as serving_scorer
from vprm_search.evaluate.search_records import Record, RecordFile
from vprm_search.testing import Fault, FaultProxy, ProxiedRequest, chance

KEY = "canary-key-1234567890"
PROBLEMS = 6
CHAT = "/v1/chat/completions"
ROOT = Path(__file__).parents[2]


def written(body: Body, child: int) -> str:
    """A solution of two steps whose answer depends on the seed alone."""
    number = int(10 * chance("answer", body["seed"], child))
    return f"Adding gives {number}.\n\nAnswer: {number}"


@dataclass
class Servers:
    """A policy behind a proxy that fails by `fault`, a scorer, and problems with pictures."""

    policy: Server
    proxy: FaultProxy
    scorer: Double
    folder: Path
    faults: list[Any] = field(default_factory=list)

    def command(self, *more: str, strategy: str = "beam") -> tuple[str, ...]:
        return (
            "compare", "--problems", str(self.folder / "problems.jsonl"),
            "--policy", "openai:m", "--base-url", f"{self.proxy.url}/v1",
            "--scorer", f"vllm:{self.scorer.url}",
            "--n", "4", "--strategy", strategy, "--out", str(self.folder / "out"), *more,
        )  # fmt: skip

    @property
    def records(self) -> dict[tuple[int, str, int], Record]:
        return {record.key: record for record in RecordFile(self.folder / "out")}

    @property
    def asked(self) -> int:
        return len(self.proxy.met)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    lines = []
    for number in range(PROBLEMS):
        Image.new("RGB", (40, 40), (20 * number, 90, 200)).save(tmp_path / f"{number}.png")
        record = {"question": f"{number} + 1?", "image": f"{number}.png", "answer": number}
        lines.append(json.dumps(record))
    (tmp_path / "problems.jsonl").write_text("\n".join(lines))
    faults: list[Any] = []

    def fault(request: ProxiedRequest) -> Fault | None:
        return faults[-1](request) if faults else None

    with serving_policy(written) as policy, serving_scorer(api_key=KEY) as scorer:
        upstream = policy.url.removesuffix("/v1")
        with FaultProxy(upstream, fault, only=CHAT) as proxy:
            yield Servers(policy, proxy, scorer, tmp_path, faults)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPRM_SEARCH_API_KEY", KEY)


def about(number: int, request: ProxiedRequest) -> bool:
    """Whether a request is about this problem."""
    return f"{number} + 1?" in request.body.decode()


def results(servers: Servers) -> Any:
    return json.loads((servers.folder / "out" / "results.json").read_text())["searches"]


def outcome(record: Record) -> Record:
    """A record without the times and what depends on them."""
    usage = replace(record.usage, seconds=0.0, requests=0, prompt_tokens=0)
    return replace(record, seconds=0.0, cpu_seconds=0.0, usage=usage)


# --- a server that is down -----------------------------------------------------------------------


@pytest.mark.slow
def test_a_server_that_is_down_stops_the_run_and_leaves_no_results(
    run: Run, servers: Servers
) -> None:
    servers.faults.append(lambda request: Fault("reset"))
    ran = run(*servers.command())
    assert ran.code == 1
    assert ran.out.startswith("### No results")
    assert "weighted-vote" not in ran.out
    (line,) = (line for line in ran.err.splitlines() if line.startswith("error:"))
    for said in ("nothing came of 6 searches", "24 of 24 calls to the policy failed", "Connection"):
        assert said in line
    assert "check that the server runs" in line
    assert results(servers)["rows"] == []
    before = servers.asked
    again = run(*servers.command())
    assert again.code == 1
    assert servers.asked == 2 * before  # asked again, not taken for measured
    servers.faults.append(lambda request: None)
    ran = run(*servers.command())
    assert ran.code == 0, ran.err
    assert all(record.failures.share == 0 for record in servers.records.values())
    assert len(servers.records) == 2 * PROBLEMS
    undisturbed = replace(servers, folder=servers.folder / "calm")
    undisturbed.folder.mkdir()
    for path in servers.folder.glob("*.*"):
        (undisturbed.folder / path.name).write_bytes(path.read_bytes())
    assert run(*undisturbed.command()).code == 0
    assert {k: outcome(r) for k, r in servers.records.items()} == {
        k: outcome(r) for k, r in undisturbed.records.items()
    }


def test_a_port_where_nothing_listens(run: Run, servers: Servers) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = servers.command("--base-url", f"http://127.0.0.1:{port}/v1")
    ran = run(*command)
    assert ran.code == 1
    assert "calls to the policy failed" in ran.err
    assert "bug" not in ran.err


def test_a_scorer_that_wants_another_key_is_one_line(run: Run, servers: Servers) -> None:
    ran = run(*servers.command("--scorer-api-key", "another-key-000000"))
    assert ran.code == 1
    assert "401" in ran.err
    assert "--scorer-api-key" in ran.err
    assert "vprm-search serve" not in ran.err  # a server is there
    assert "another-key" not in ran.err
    assert servers.asked == 0
    assert not servers.records


# --- some calls fail -----------------------------------------------------------------------------


def test_400_on_half_of_the_calls_is_no_result_and_only_they_are_repeated(
    run: Run, servers: Servers
) -> None:
    def half(request: ProxiedRequest) -> Fault | None:
        odd = any(about(number, request) for number in (1, 3, 5))
        return Fault("status", status=400) if odd else None

    servers.faults.append(half)
    ran = run(*servers.command())
    assert ran.code == 1
    assert "2 of 2 cells are no results (best-of-n@4, beam@4)" in ran.err
    assert "| best-of-n | 4 | 12 of 24 calls to the policy failed | HTTP 400: " in ran.out
    assert "a fault made for a test" in ran.out
    assert "weighted-vote" not in ran.out  # no accuracy of anything
    found = results(servers)
    assert found["rows"] == []
    assert [(cell["name"], cell["share"]) for cell in found["no_results"]] == [("best-of-n", 0.5)]
    assert found["not_measured"] == ["beam@4"]
    kept = {key: record for key, record in servers.records.items() if key[0] % 2 == 0}
    assert not any(record.failures.share for record in kept.values())

    servers.faults.append(lambda request: None)
    before = servers.asked
    ran = run(*servers.command())
    assert ran.code == 0, ran.err
    asked = Counter(
        number
        for request, _ in servers.proxy.met[before:]
        for number in range(PROBLEMS)
        if about(number, request) and "Adding" not in request.body.decode()
    )
    whole = [body for body in servers.policy.bodies if body.get("max_completion_tokens") == 4096]
    assert {number for number in range(PROBLEMS) if asked[number]} == set(range(PROBLEMS))
    assert Counter(str(body["messages"]).split(" + 1?")[0][-1] for body in whole) == Counter(
        {str(number): 1 for number in range(PROBLEMS)}  # best-of-N once each: none asked again
    )
    assert {key: servers.records[key] for key in kept} == kept


def test_a_few_failed_calls_are_shown_and_not_repeated(run: Run, servers: Servers) -> None:
    lost = iter([None, Fault("status", status=400)])
    servers.faults.append(lambda request: next(lost, None))
    ran = run(*servers.command("--max-failed", "0.2"))
    assert ran.code == 0, ran.err
    assert "4 of 24 calls to the policy failed, most often: HTTP 400" in ran.err
    assert "| 16.7 % |" in ran.out
    failed = {row["name"]: row["failed"] for row in results(servers)["rows"]}
    assert failed == {"best-of-n": pytest.approx(4 / 24), "beam": 0.0}
    before = servers.asked
    assert run(*servers.command("--max-failed", "0.2")).code == 0
    assert servers.asked == before
    strict = run(*servers.command("--max-failed", "0.1"))  # a stricter look makes them again
    assert strict.code == 0
    assert servers.asked > before
    assert not any(record.failures.share for record in servers.records.values())


def test_a_scorer_that_refuses_paths_is_no_result(run: Run, servers: Servers) -> None:
    refused = {f"{number} + 1?" for number in (0, 2)}
    servers.scorer.refuses = lambda data: 400 if data["question"] in refused else None
    ran = run(*servers.command())
    assert ran.code == 1
    assert "steps got no score" in ran.out
    assert "refused: " in ran.out
    assert "refused here" in ran.out
    servers.scorer.refuses = lambda data: None
    assert run(*servers.command()).code == 0
    assert not any(record.failures.unscored for record in servers.records.values())


def test_a_reply_that_is_no_answer_is_no_failed_call(run: Run, servers: Servers) -> None:
    def empty(body: Body, child: int) -> str:
        return " " if child == 0 else written(body, child)

    servers.policy.solve = empty
    servers.policy.answer = counted(servers.policy.answer)  # type: ignore[method-assign]
    ran = run(*servers.command(strategy="best-of-n"))
    assert ran.code == 0, ran.err
    assert not any(record.failures.lost for record in servers.records.values())


def counted(answer: Any) -> Any:
    """Let an empty reply cost the token that ends it, as servers count."""

    def answered(body: Body) -> Body:
        reply = answer(body)
        reply["usage"]["completion_tokens"] += len(reply["choices"])
        return dict(reply)

    return answered


# --- options and identity ------------------------------------------------------------------------


def test_step_tokens_and_continuation_reach_the_server(run: Run, servers: Servers) -> None:
    assert run(*servers.command("--step-tokens", "5", "--continuation", "instruct")).code == 0
    bodies = servers.policy.bodies
    asked = {body["max_completion_tokens"] for body in bodies}
    assert {5, 4096} <= asked  # steps, and whole solutions of best-of-N; less near the budget
    assert not any("continue_final_message" in body for body in bodies)
    other = run(*servers.command("--step-tokens", "6", "--continuation", "instruct"))
    assert other.code == 1
    assert "max_tokens_per_step" in other.err


def test_the_scorers_key_is_sent_and_written_nowhere(
    run: Run, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VPRM_SEARCH_API_KEY")
    ran = run(*servers.command("--scorer-api-key", KEY))
    assert ran.code == 0, ran.err
    assert KEY not in ran.out + ran.err
    for path in (servers.folder / "out").rglob("*"):
        assert KEY.encode() not in path.read_bytes()


def test_other_bytes_of_a_picture_are_another_comparison(run: Run, servers: Servers) -> None:
    assert run(*servers.command()).code == 0
    before = servers.asked
    assert run(*servers.command()).code == 0
    Image.new("RGB", (40, 40), (1, 2, 3)).save(servers.folder / "4.png")
    ran = run(*servers.command())
    assert ran.code == 1
    assert "world.images " in ran.err
    assert servers.asked == before
    (servers.folder / "4.png").unlink()
    ran = run(*servers.command())
    assert ran.code == 1
    assert "4.png" in ran.err


def test_another_model_behind_the_scorers_address_is_refused(run: Run, servers: Servers) -> None:
    assert run(*servers.command(strategy="best-of-n")).code == 0
    servers.scorer.identity = "model-two"
    ran = run(*servers.command(strategy="best-of-n"))
    assert ran.code == 0  # nothing is asked, so nothing is mixed
    ran = run(*servers.command())
    assert ran.code == 1
    assert "model-one" in ran.err
    assert "model-two" in ran.err


def test_selectors_are_asked_later_without_a_model(run: Run, servers: Servers) -> None:
    assert run(*servers.command("--selector", "majority")).code == 0
    before, scored = servers.asked, len(servers.scorer.asked)
    later = ("majority", "best-score:min", "weighted-vote:product")
    asked = [word for name in later for word in ("--selector", name)]
    ran = run(*servers.command(*asked))
    assert ran.code == 0, ran.err
    assert (servers.asked, len(servers.scorer.asked)) == (before, scored)
    late = {(r["name"], r["choice"]): r["accuracy"]["mean"] for r in results(servers)["rows"]}
    calm = replace(servers, folder=servers.folder / "calm")
    calm.folder.mkdir()
    for path in servers.folder.glob("*.*"):
        (calm.folder / path.name).write_bytes(path.read_bytes())
    assert run(*calm.command(*asked)).code == 0
    rows = {(r["name"], r["choice"]): r["accuracy"]["mean"] for r in results(calm)["rows"]}
    assert rows == late


# --- kill -9 -------------------------------------------------------------------------------------


def killed(command: tuple[str, ...], out: Path, lines: int) -> int:
    """Run a command until it has written so many more lines, kill it, and return its code."""
    path = out / "records.jsonl"
    start = path.read_bytes().count(b"\n") if path.exists() else 0
    program = [sys.executable, "-c", "from vprm_search.cli import main; main()", *command]
    process = subprocess.Popen(
        program, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None:
        there = path.read_bytes().count(b"\n") if path.exists() else 0
        if lines and there >= start + lines:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    return process.wait()


@pytest.mark.slow
def test_a_run_killed_again_and_again_equals_an_undisturbed_one(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = (
        "compare", "--world", "synthetic", "--problems", "20", "--n", "4", "--n", "8",
        "--strategy", "beam", "--strategy", "rebase", "--batch", "3", "--out", str(out),
    )  # fmt: skip
    codes = [killed(command, out, 1 + 4 * kill % 7) for kill in range(10)]
    assert codes == [-signal.SIGKILL] * 10
    text = (out / "records.jsonl").read_bytes()
    (out / "records.jsonl").write_bytes(text[:-40])  # as if it had been killed while it wrote
    assert run(*command).code == 0
    there = RecordFile(out)
    lines = (out / "records.jsonl").read_bytes().count(b"\n")
    assert lines - len(list(there)) <= 1  # the torn line; nothing else was made twice
    assert run(*command[:-1], str(tmp_path / "calm")).code == 0
    calm = RecordFile(tmp_path / "calm")
    for record in calm:
        again = there.get(*record.key)
        assert again is not None
        assert work(again) == work(record)
        assert there.choice(again, "majority") == calm.choice(record, "majority")
    ours, theirs = (json.loads((folder / "results.json").read_text())["searches"]
                    for folder in (out, tmp_path / "calm"))  # fmt: skip
    assert [row["accuracy"] for row in ours["rows"]] == [row["accuracy"] for row in theirs["rows"]]
    assert ours["pairs"] == theirs["pairs"]


@pytest.mark.slow
def test_no_process_outlives_a_killed_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = (
        "compare", "--world", "synthetic", "--problems", "500", "--n", "4", "--strategy", "beam",
        "--batch", "5", "--jobs", "2", "--out", str(out),
    )  # fmt: skip
    assert killed(command, out, 10) == -signal.SIGKILL
    time.sleep(1)
    before = (out / "records.jsonl").read_bytes()
    time.sleep(3)
    assert (out / "records.jsonl").read_bytes() == before
    assert 10 <= before.count(b"\n") < 1000


def work(record: Record) -> Record:
    """A record without the times, and the work that a cache of the process saves."""
    usage = replace(record.usage, seconds=0.0, tokens_sent=0, tokens_computed=0)
    return replace(record, seconds=0.0, cpu_seconds=0.0, usage=usage)


def test_the_summary_names_each_failing_cell(run: Run, servers: Servers) -> None:
    def steps(request: ProxiedRequest) -> Fault | None:
        body = request.json()
        whole = body.get("max_completion_tokens") == 4096
        return None if whole else Fault("status", status=404)

    servers.faults.append(steps)
    ran = run(*servers.command(strategy="rebase"))
    assert ran.code == 1
    found = results(servers)
    assert {row["name"] for row in found["rows"]} == {"best-of-n"}
    assert [cell["name"] for cell in found["no_results"]] == ["rebase"]
    assert "check the model's name" in ran.out
    assert "weighted-vote:product | " in ran.out
