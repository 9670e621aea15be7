"""The ablations of best-of-N: tables of what `vprm-search evaluate` reports on the world."""

from __future__ import annotations

import random
import re

from PIL import Image

from examples.tiny_models.paper_best_of_n import scaling_tables, temperature
from examples.tiny_models.paper_judge import SimulatedJudge, judge
from tests.evaluate.test_critics import drawn_pools
from vprm_search.aggregate import AGGREGATIONS
from vprm_search.evaluate.critics import summarise, tabulate
from vprm_search.images.normalise import normalise_image
from vprm_search.types import Problem, ScoreRequest


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if re.match(r"\| [^-]", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_all_critics_and_aggregations_stand_in_tables() -> None:
    knows = {f"prm:{rule}": place / 10 for place, rule in enumerate(AGGREGATIONS)} | {"orm": 0.1}
    summary = summarise(tabulate(drawn_pools(60, 8, **knows), 8))
    told = rows(scaling_tables(summary))
    names = [row[0] for row in told]
    assert {*AGGREGATIONS, "pass@1", "pass@N (oracle)", "ORM", "PRM, mean"} <= set(names)
    expected = {
        (row["selector"], row["size"]): f"{100 * row['expected']['mean']:.1f}"
        for row in summary["rows"]
    }
    (orm,) = [row for row in told if row[0] == "ORM"]
    assert [cell.split()[0] for cell in orm[1:]] == [expected["orm", n] for n in (1, 2, 4, 8)]
    (product,) = [row for row in told if row[0] == "product"]
    assert product[1].startswith(expected["prm:product", 8])
    assert product[2].startswith("**+")  # it knows more than the mean here
    assert "PRM, mean less ORM" in names


def test_the_paper_s_figure_stands_beside_a_temperature() -> None:
    told = rows(temperature(1, temperatures=(1.0,)))
    assert told[1][:2] == ["1", "40.9"]
    assert len(told) == 2


async def test_a_simulated_judge_is_wrong_as_often_as_is_said() -> None:
    image = normalise_image(Image.new("RGB", (8, 8)))
    rng = random.Random(0)
    texts = [f"{n}\n\nAnswer: {rng.choice((7, 8))}" for n in range(4000)]
    asked = [ScoreRequest(Problem("?", (image.digest,)), (text,), (image,)) for text in texts]
    for errors in (0, 20, 100):
        judged = SimulatedJudge({image.digest: "7"}, errors)
        results = await judged.score(asked)
        assert await judged.score(asked[::-1]) == results[::-1]  # it is the text that decides
        said = [result.scores[0].value == 1.0 for result in results]
        for right in (True, False):  # of right ones and of wrong ones alike
            own = [s for s, text in zip(said, texts, strict=True) if text.endswith("7") is right]
            wrong = sum(s is not right for s in own)
            spread = 4 * (len(own) * errors / 100 * (1 - errors / 100)) ** 0.5
            assert abs(wrong - len(own) * errors / 100) <= spread


def test_what_judges_choose_stands_beside_the_paper_s_and_is_called_simulated() -> None:
    head, paper, *simulated = rows(judge(2, errors=(50, 0)))
    assert paper[:3] == ["the paper's", "33.2", "+0.4"]
    assert paper[head.index("PRM, mean less it, points")] == "+7.9"
    assert [row[0].split(",")[0] for row in simulated] == ["simulated"] * 2
    for row in simulated:
        assert {row[3], row[5]} <= {"same", "other", "open"}
    # who is never wrong chooses a right one wherever there is one: no critic is above it
    ahead = re.search(r"[-+][\d.]+", simulated[1][4])
    assert ahead is not None
    assert float(ahead[0]) <= 0
