"""A simulated judge of stated error rates in best-of-8: none that could be asked sees this world.

Nothing here is a chat model: a right answer is called right, and a wrong one wrong, but for a
stated share of the solutions, drawn by their texts. Everything else is `vprm-search evaluate`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from examples.tiny_models.paper_best_of_n import (
    FIRST_INDEX,
    PRM,
    evaluated,
    figure_at,
    row_of,
    written,
)
from examples.tiny_models.paper_figures import table
from examples.tiny_models.problem_files import draw
from vprm_search.answers import extract_answer
from vprm_search.compare.report import points
from vprm_search.compare.worlds import is_right
from vprm_search.datasets.problem_set import read_problem_set
from vprm_search.evaluate.estimators import PASS_1, VOTE
from vprm_search.evaluate.folder import RunFolder
from vprm_search.evaluate.paper import ABLATIONS, Claim
from vprm_search.evaluate.scoring import Critic
from vprm_search.evaluate.stages import Stages
from vprm_search.graph.blocking import run_blocking
from vprm_search.ids import digest
from vprm_search.images.normalise import normalise_image
from vprm_search.tiny.world import FAMILIES, render
from vprm_search.types import ScoreRequest, ScoreResult, StepScore

ERRORS = (50, 45, 40, 30, 20, 10, 5)
"""Solutions in 100 that a judge is wrong about; 50 is a coin."""
N = 8


class SimulatedJudge:
    """Says of a whole solution whether its answer is right, and is wrong in a stated share.

    Args:
        answers: the right answers by the digests of the pictures.
        errors: solutions in 100 that it is wrong about, right ones and wrong ones alike.
    """

    def __init__(self, answers: Mapping[str, str], errors: int) -> None:
        self._answers, self._errors = answers, errors
        self.identity = f"simulated judge, wrong about {errors} of 100"

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Return 1 for "right" and 0 for "wrong"; the same text is always judged alike."""
        return [ScoreResult((self._verdict(request),), 0, (0,)) for request in requests]

    def _verdict(self, request: ScoreRequest) -> StepScore:
        (image,), (solution,) = request.images, request.steps
        right = is_right(self._answers[image.digest], extract_answer(solution))
        drawn = int.from_bytes(digest(self.identity, image.digest, solution)[:8], "big") / 2**64
        return StepScore(float(right != (drawn < self._errors / 100)))


def judge(problems: int = 200, *, errors: Sequence[int] = ERRORS) -> str:
    """Measure what judges of these error rates choose of 8, beside the reward model.

    Args:
        problems: of each family.
        errors: in 100.
    """
    tasks = draw(problems * len(FAMILIES), first=FIRST_INDEX)
    answers = {normalise_image(render(task)).digest: task.answer for task in tasks}
    names = {rate: f"simulated-judge-{rate}" for rate in errors}
    with tempfile.TemporaryDirectory() as folder:
        path, out = written(Path(folder), problems), Path(folder) / "run"
        made = ("--stage", "generate", "--stage", "score", "--stage", "grade")
        evaluated(path, out, "--n", str(N), *made)
        judges = [Critic(name, simulated := SimulatedJudge(answers, rate), simulated.identity,
                         "whole") for rate, name in names.items()]  # fmt: skip
        run_blocking(Stages(read_problem_set(path), RunFolder(out), N).score(judges))
        summary = evaluated(path, out, "--n", str(N), "--stage", "select")
    less = {pair["second"]: pair["difference"] for pair in summary["pairs"] if pair["size"] == N}
    paper = ABLATIONS["judge"] - ABLATIONS[PASS_1], ABLATIONS[PRM] - ABLATIONS["judge"]
    rows = [["the paper's", f"{ABLATIONS['judge']:.1f}", f"{paper[0]:+.1f}", "",
             f"{paper[1]:+.1f}", "", ""]]  # fmt: skip
    for rate, name in names.items():
        gain = Claim(name, PASS_1, N, paper[0], row_of(summary, name, N)["gain"])
        behind = Claim(PRM, name, N, paper[1], less[name])
        rows.append(
            [f"simulated, wrong about {rate} of 100", figure_at(summary, name, N),
             points(gain.ours), gain.sign, points(behind.ours), behind.sign,
             figure_at(summary, f"{VOTE}{name}", N)]
        )  # fmt: skip
    told = f"{summary['problems']} problems, N = {N}; accuracy in %, expected. Here one solution "
    told += f"has {figure_at(summary, PASS_1, 1)}, and PRM, mean {figure_at(summary, PRM, N)}."
    head = ["judge", "its choice", "less pass@1, points", "sign", "PRM, mean less it, points",
            "sign", "votes weighted by it"]  # fmt: skip
    return told + "\n\n" + table(head, rows)
