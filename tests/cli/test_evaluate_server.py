"""`vprm-search evaluate` with a policy and judges on an OpenAI-compatible server."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.json_server import Asked, Reply, json_server

pytest.importorskip("langchain_openai")


def choice(index: int, text: str, logprob: float) -> dict[str, Any]:
    tops = [{"token": text, "logprob": logprob, "bytes": None, "top_logprobs": []}]
    return {"index": index, "message": {"role": "assistant", "content": text},
            "finish_reason": "stop", "logprobs": {"content": tops}}  # fmt: skip


@pytest.fixture
def asked() -> list[Any]:
    """The bodies of all calls."""
    return []


@pytest.fixture
def url(asked: list[Any]) -> Iterator[str]:
    """A server that writes right and wrong solutions in turn, and judges them by their words."""

    def rule(call: Asked) -> Reply:
        if not call.path.endswith("/chat/completions"):
            return Reply({"error": {"message": "no"}}, 404)
        body = call.body
        asked.append(body)
        text = "\n".join(str(message["content"]) for message in body["messages"])
        if "FENCE" in text:  # a judge
            answers = re.findall(r"(?:Answer: |given answer\n)(\d+)", text)
            said = "yes" if answers[-1] == "11" else "no"
            words = f"Verdict: {said}" if "top_logprobs" not in body else said
            choices = [choice(0, words, math.log(0.9))]
        else:
            number = int(body.get("seed", 0))
            count = body.get("n") or 1
            choices = [
                choice(n, f"Step 1: add.\n\nAnswer: {11 + (number + n) % 2}", -(1.0 + n))
                for n in range(count)
            ]
        usage = {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16}
        return Reply({"id": "x", "object": "chat.completion", "created": 0, "model": "m",
                      "choices": choices, "usage": usage})  # fmt: skip

    with json_server(rule) as server:
        yield server


def test_policy_judge_and_likelihood_from_a_server(
    run: Run, url: str, asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    file, out, prices = tmp_path / "set.jsonl", tmp_path / "out", tmp_path / "prices.json"
    rows = [{"id": n, "question": f"What is {n} + {11 - n}?", "answer": "11"} for n in range(3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prices.write_text(json.dumps({"per_million_generated_tokens": 1000}))
    server = f"{url}/v1"
    given = ("evaluate", str(file), "--out", str(out), "--n", "4", "--policy", "openai:m",
             "--base-url", server, "--likelihood", "--top-p", "0.9", "--greedy-first",
             "--prompt", "cot", "--prices", str(prices))  # fmt: skip
    judges = ("--judge", "openai:j", "--answer-judge", "openai:k", "--judge-base-url", server)
    ran = run(*given, *judges)
    assert ran.code == 0, ran.err
    policy = [body for body in asked if "FENCE" not in json.dumps(body["messages"])]
    assert {body["top_p"] for body in policy} == {0.9}
    assert {body["temperature"] for body in policy} == {0.0, 0.7}
    assert all(body["logprobs"] for body in policy)
    assert all("$FINAL_ANSWER" in json.dumps(body["messages"]) for body in policy)
    summary = json.loads((out / "results.json").read_text())
    names = {row["selector"] for row in summary["rows"]}
    assert {"judge", "likelihood", "vote:judge", "majority"} <= names
    assert summary["graders"]["judge"]["graded"] == 12
    assert summary["rows"][0]["cost"] > 0
    assert "openai:m, temperature 0.7, top_p 0.9" in ran.out
    before = len(asked)
    assert run(*given, *judges).code == 0
    assert len(asked) == before  # nothing is asked twice


def test_a_run_whose_calls_fail_is_no_result(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    file, out = tmp_path / "set.jsonl", tmp_path / "out"
    file.write_text(json.dumps({"id": 1, "question": "What is 1 + 2?", "answer": "3"}) + "\n")
    with json_server(lambda _: Reply({"error": {"message": "no such model"}}, 400)) as url:
        ran = run("evaluate", str(file), "--out", str(out), "--n", "2", "--policy", "openai:m",
                  "--base-url", f"{url}/v1")  # fmt: skip
    assert ran.code == 1
    assert "2 of 2 failed in generate" in ran.err
    assert "no such model" in ran.err
    assert not (out / "results.json").exists()
