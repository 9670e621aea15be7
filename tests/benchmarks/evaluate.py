"""Grading and reporting a large run: memory and candidates a second, without any model.

    python -m tests.benchmarks.evaluate --problems 10000 --n 16

writes candidates and step scores as a run does, in a temporary folder, and then grades and reports
them in a process of its own. Memory is that process's peak; seconds are of its CPU.
Set OMP_NUM_THREADS=1: threads that wait for one another count, too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vprm_search.datasets.graders import grader_of
from vprm_search.datasets.problem_set import Item, ProblemSet, read_problem_set
from vprm_search.evaluate.candidates import (
    FACTS,
    Candidate,
    Sampling,
    candidate_id,
    item_key,
    picture_key,
)
from vprm_search.evaluate.critics import summarise, tabulate
from vprm_search.evaluate.folder import RunFolder, write_atomically
from vprm_search.evaluate.grading import ByRule
from vprm_search.evaluate.pooling import CRITIC, RecordedRun
from vprm_search.evaluate.prompts import PROMPTS
from vprm_search.evaluate.report import markdown
from vprm_search.evaluate.stages import Stages

STEPS = 8


def write(out: Path, problems: int, n: int) -> None:
    """Write a set and the candidates and scores of a run over it."""
    rows = [{"id": str(number), "question": f"What is {number} + {number}? " + "Look. " * 40,
             "answer": str(2 * number)} for number in range(problems)]  # fmt: skip
    (out / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = RunFolder(out / "run")
    folder.path.mkdir()
    run = folder.settle(FACTS, Sampling("none", PROMPTS["plain"]).facts())
    prm = folder.settle(f"{CRITIC} prm", {"identity": "none", "kind": "steps", "max_steps": 12})
    draw = random.Random(0)
    with (
        (folder.path / "candidates.jsonl").open("w") as candidates,
        (folder.path / "scores-prm.jsonl").open("w") as scores,
    ):
        problem_set = read_problem_set(out / "set.jsonl")
        for item in problem_set:
            for index in range(n):
                line, score = _lines(run, problem_set, item, index, draw)
                candidates.write(json.dumps({"run": run, "left": 0, **line}) + "\n")
                scores.write(json.dumps({"run": prm, "left": 0, **score}) + "\n")


def _lines(
    run: str, problems: ProblemSet, item: Item, index: int, draw: random.Random
) -> tuple[dict[str, object], dict[str, object]]:
    right = draw.random() < 0.5
    said = int(item.answer) + (0 if right else draw.randint(1, 9))
    work = [f"Step {n}: " + f"we carry {draw.randint(0, 9)} and go on, " * 4
            for n in range(1, STEPS)]  # fmt: skip
    text = "\n\n".join([*work, f"So the sum is {said}.\n\nAnswer: \\boxed{{{said}}}"])
    pictures = picture_key(problems, item)
    candidate = Candidate(
        id=candidate_id(run, item, pictures, index),
        row=item.row,
        index=index,
        text=text,
        generated_tokens=len(text) // 4,
    )
    values = {name: getattr(candidate, name) for name in Candidate.__slots__}
    score = {
        "row": item.row,
        "index": index,
        "of": candidate.content,
        "scores": [min(1.0, draw.random() + 0.2 * right) for _ in range(STEPS + 1)],
        "reason": "",
        "scored_tokens": len(text) // 4,
        "counts": {},
        "seconds": 0.0,
    }
    return {**values, "item": item_key(item), "pictures": pictures}, score


def measure(out: Path, n: int) -> dict[str, float]:
    """Grade and report; return seconds and this process's peak of memory."""
    problems = read_problem_set(out / "set.jsonl")
    start = time.process_time()
    stages = Stages(problems, RunFolder(out / "run"), n)
    asyncio.run(stages.grade([ByRule(grader_of(""))]))
    graded = time.process_time()
    run = RecordedRun(out / "run", problems)
    table = tabulate(run.pools(n), n)
    write_atomically(out / "results.md", markdown(summarise(table)))
    end = time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kB on Linux
    return {
        "candidates": len(problems) * n,
        "grade_s": graded - start,
        "select_s": end - graded,
        "candidates_a_second": len(problems) * n / (end - start),
        "peak_mb": peak,
    }


def main() -> None:
    """Write a run, or measure one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=10_000)
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--measure", type=Path)
    given = parser.parse_args()
    if given.measure is not None:
        sys.stdout.write(json.dumps(measure(given.measure, given.n), indent=1) + "\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), given.problems, given.n)
        command = [sys.executable, "-m", "tests.benchmarks.evaluate", "--measure", folder]
        subprocess.run([*command, "--n", str(given.n)], check=True)


if __name__ == "__main__":
    main()
