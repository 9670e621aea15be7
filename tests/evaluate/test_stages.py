"""The stages over one folder: nothing is made twice, nothing is mixed, failed calls come again."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage

from tests.evaluate.conftest import SAMPLING, MakeSet, critics, right_of, run_all, solve
from vprm_search.datasets.graders import GRADERS, grader_of
from vprm_search.datasets.problem_set import read_problem_set
from vprm_search.errors import ConfigError, ImageError, RecordError, SearchError
from vprm_search.evaluate.folder import RunFolder, key_of
from vprm_search.evaluate.grading import ByRule
from vprm_search.evaluate.pooling import RecordedRun
from vprm_search.evaluate.prompts import PROMPTS
from vprm_search.evaluate.result_file import predictions_of
from vprm_search.evaluate.scoring import Critic
from vprm_search.evaluate.stages import Stages
from vprm_search.policy import ChatModelPolicy
from vprm_search.testing import ScriptedChatModel, ScriptedPolicy, ScriptedScorer
from vprm_search.tiny.world import generate, render
from vprm_search.types import Proposal, ProposeRequest


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_every_candidate_is_scored_and_graded_once(stages: Stages) -> None:
    policy = ScriptedPolicy(solve)
    await run_all(stages, policy)
    folder = stages.folder.path
    wanted = [(row, index) for row in range(1, 7) for index in range(4)]
    files = ("candidates", "scores-prm", "scores-orm", "grades-sameness")
    for name in files:
        found = [(line["row"], line["index"]) for line in lines(folder / f"{name}.jsonl")]
        assert sorted(found) == wanted
    written = {name: (folder / f"{name}.jsonl").read_bytes() for name in files}
    again = Stages(stages.problems, RunFolder(folder), 4)
    await run_all(again, ScriptedPolicy([]))  # which has nothing to say
    assert {name: (folder / f"{name}.jsonl").read_bytes() for name in files} == written
    ids = [line["id"] for line in lines(folder / "candidates.jsonl")]
    seeds = [seed for request in policy.asked for seed in request.seeds]
    assert len(set(ids)) == len(set(seeds)) == len(wanted)


async def test_pools_hold_what_was_said_scored_and_graded(stages: Stages) -> None:
    await run_all(stages)
    pools = list(RecordedRun(stages.folder.path, stages.problems).pools(4))
    assert [pool.id for pool in pools] == [f"p{n}" for n in range(6)]
    for pool, item in zip(pools, stages.problems, strict=True):
        right = str(right_of(item.question))
        assert [c.right for c in pool.candidates] == [c.answer == right for c in pool.candidates]
        classes = {c.answer: c.vote_class for c in pool.candidates}
        assert len(set(classes.values())) == len(classes)
        assert [c.vote_class for c in pool.candidates] == [
            classes[c.answer] for c in pool.candidates
        ]
        for candidate in pool.candidates:
            named = {"prm:mean", "prm:last", "prm:min", "prm:max", "prm:product", "orm"}
            assert named <= set(candidate.scores)
            low, mean, high = (candidate.scores[f"prm:{n}"] for n in ("min", "mean", "max"))
            assert (low or 0) <= (mean or 0) <= (high or 0) != 0
            assert candidate.generated_tokens == len(candidate.text.split())
            assert candidate.scored_tokens >= len(candidate.text.split())


async def test_a_pool_grows_and_keeps_its_candidates(stages: Stages) -> None:
    await run_all(stages)
    first = (stages.folder.path / "candidates.jsonl").read_bytes()
    stages.n = 128
    await run_all(stages)
    assert (stages.folder.path / "candidates.jsonl").read_bytes().startswith(first)
    pools = list(RecordedRun(stages.folder.path, stages.problems).pools(128))
    assert [[c.index for c in pool.candidates] for pool in pools] == [list(range(128))] * 6


async def test_a_set_may_grow_too(make_set: MakeSet, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    await run_all(Stages(make_set(2), folder, 2))
    asked = ScriptedPolicy(solve)
    await run_all(Stages(make_set(5), folder, 2), asked)
    assert len(asked.asked) == 3


async def test_failed_calls_are_shown_and_made_again(stages: Stages) -> None:
    def sometimes(request: ProposeRequest, seed: int) -> str | Exception:
        return solve(request, seed) if seed % 3 else ConnectionError("the server is down")

    await run_all(stages, ScriptedPolicy(sometimes))
    failed, count = stages.failures["generate"]
    assert 0 < failed < count == 24
    assert "the server is down" in stages.reasons["generate"]
    pools = list(RecordedRun(stages.folder.path, stages.problems).pools(4))
    lost = [c for pool in pools for c in pool.candidates if not c.text]
    assert len(lost) == failed
    assert all(not c.right and c.scores["prm:mean"] is None for c in lost)
    again = Stages(stages.problems, RunFolder(stages.folder.path), 4)
    policy = ScriptedPolicy(solve)
    await run_all(again, policy)
    assert sum(len(request.seeds) for request in policy.asked) == failed
    assert not again.failures
    undisturbed = Stages(stages.problems, RunFolder(stages.folder.path / "other"), 4)
    await run_all(undisturbed)
    assert _texts(again) == _texts(undisturbed)


async def test_refused_and_empty_replies_are_wrong_answers_and_not_asked_again(
    stages: Stages,
) -> None:
    refusal = AIMessage("", response_metadata={"finish_reason": "content_filter"})
    texts: list[str | AIMessage] = ["", "   ", refusal, "Answer: 3"]

    def policy() -> ChatModelPolicy:
        return ChatModelPolicy(ScriptedChatModel(lambda call: texts[call.number % 4]))

    await stages.generate(SAMPLING, policy)
    await stages.score(critics())
    await stages.grade([ByRule(grader_of(""))])
    assert not stages.failures
    found = [c for item in stages.problems for c in stages.candidates()[0].of(item)]
    assert [c.finish for c in found].count("unusable") == len(found) * 3 // 4
    assert all(c.error for c in found if not c.text)
    for pool in RecordedRun(stages.folder.path, stages.problems).pools(4):
        assert not any(c.right for c in pool.candidates if not c.text)
    again = Stages(stages.problems, RunFolder(stages.folder.path), 4)
    await again.generate(SAMPLING, lambda: pytest.fail("nothing is asked again"))


async def test_what_is_chosen_is_told_where_the_answer_is_not_published(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    rows = [{"id": f"p{n}", "question": f"What is {n} + 3?"} for n in range(3)]
    rows[0]["answer"] = "3"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stages = Stages(read_problem_set(path), RunFolder(tmp_path / "run"), 4)
    await run_all(stages)
    run = RecordedRun(stages.folder.path, stages.problems)
    assert [pool.id for pool in run.pools(4)] == ["p0"]
    said = predictions_of(run.pools(4, unpublished=True), run.problems, "prm:last", 4)
    assert set(said) == {"p0", "p1", "p2"}
    assert all(answer.isdigit() for answer in said.values())


def _texts(stages: Stages) -> list[str]:
    run = RecordedRun(stages.folder.path, stages.problems)
    return [candidate.text for pool in run.pools(stages.n) for candidate in pool.candidates]


async def test_unscored_candidates_are_scored_again_but_for_what_never_can_be(
    stages: Stages,
) -> None:
    await stages.generate(SAMPLING, lambda: ScriptedPolicy(solve))
    reasons = iter(["no_server: down", "too_long: 9,000 tokens"])

    def unscored(_: object) -> str | float:
        return next(reasons, 0.5)

    stages.n, asked = 2, ScriptedScorer(unscored, identity="s")
    await stages.score([Critic("prm", asked, "s", "whole")])
    assert stages.failures["score (prm)"] == (1, 12)
    better = ScriptedScorer(lambda _: 0.5, identity="s")
    again = Stages(stages.problems, RunFolder(stages.folder.path), 2)
    await again.score([Critic("prm", better, "s", "whole")])
    assert len(better.asked) == 1
    assert not again.failures


async def test_a_server_that_is_down_ends_the_stage(stages: Stages) -> None:
    stages.n = 64
    down = ScriptedPolicy(lambda *_: ConnectionError("refused"))
    with pytest.raises(SearchError, match=r"nothing came of 10 calls in a row; .*refused"):
        await stages.generate(SAMPLING, lambda: down)


async def test_stages_need_what_comes_before_them(stages: Stages) -> None:
    with pytest.raises(RecordError, match="no candidates"):
        await stages.score(critics())
    with pytest.raises(RecordError, match="no candidates"):
        RecordedRun(stages.folder.path, stages.problems)
    await stages.generate(SAMPLING, lambda: ScriptedPolicy(solve))
    with pytest.raises(RecordError, match="nothing was graded"):
        RecordedRun(stages.folder.path, stages.problems)
    await stages.grade([ByRule(grader_of(""))])
    (pool, *_) = RecordedRun(stages.folder.path, stages.problems).pools(4)
    assert all(not c.scores for c in pool.candidates)
    stages.n = 2
    await stages.score(critics())
    with pytest.raises(RecordError, match="has no score; run --stage score --"):
        list(RecordedRun(stages.folder.path, stages.problems).pools(4))
    assert len(list(RecordedRun(stages.folder.path, stages.problems).pools(2))) == 6


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"temperature": 1.0}, "temperature 0.7, not 1.0"),
        ({"policy": "other"}, "policy 'scripted', not 'other'"),
        ({"greedy_first": True}, "greedy_first False, not True"),
        ({"prompt": PROMPTS["en"]}, "prompt"),
        ({"seed": 1}, "seed 0, not 1"),
    ],
)
async def test_other_settings_are_refused(
    stages: Stages, changes: dict[str, Any], told: str
) -> None:
    await stages.generate(SAMPLING, lambda: ScriptedPolicy(solve))
    with pytest.raises(ConfigError, match=told):
        await stages.generate(replace(SAMPLING, **changes), lambda: ScriptedPolicy(solve))


async def test_candidates_that_all_failed_leave_the_folder_to_other_settings(
    stages: Stages, make_set: MakeSet, tmp_path: Path
) -> None:
    stages.n = 1
    down = ScriptedPolicy(lambda *_: ConnectionError("refused"))
    wrong = replace(SAMPLING, policy="mistyped")
    await stages.generate(wrong, lambda: down)
    await stages.grade([ByRule(grader_of(""))])
    assert stages.failures["generate"] == (6, 6)
    again = Stages(make_set(6), RunFolder(stages.folder.path), 1)
    await run_all(again)
    undisturbed = Stages(make_set(6), RunFolder(tmp_path / "other"), 1)
    await run_all(undisturbed)
    for name in ("candidates", "scores-prm", "scores-orm", "grades-sameness"):
        found, wanted = (
            [{**line, "seconds": 0} for line in lines(one.folder.path / f"{name}.jsonl")]
            for one in (again, undisturbed)
        )
        assert found == wanted, name
    with pytest.raises(ConfigError, match="policy 'scripted', not 'mistyped'"):
        await again.generate(wrong, lambda: down)  # now there are some


async def test_scores_that_all_failed_leave_their_file_to_another_scorer(stages: Stages) -> None:
    await stages.generate(SAMPLING, lambda: ScriptedPolicy(solve))
    (prm, orm) = critics()
    down = ScriptedScorer(lambda _: "no_server: refused", identity="mistyped")
    stages.n = 1
    await stages.score([replace(prm, scorer=down)])
    assert stages.failures["score (prm)"] == (6, 6)
    again = Stages(stages.problems, RunFolder(stages.folder.path), 1)
    again.check([prm], [])
    await again.score([prm])
    assert not again.failures
    assert {line["run"] for line in lines(stages.folder.path / "scores-prm.jsonl")} == {
        key_of(prm.facts())
    }
    with pytest.raises(ConfigError, match="critic prm: identity 'noisy', not 'orm'"):
        again.check([replace(prm, scorer=orm.scorer)], [])


async def test_another_scorer_or_set_is_refused(stages: Stages, tmp_path: Path) -> None:
    await run_all(stages)
    (prm, orm) = critics()
    with pytest.raises(ConfigError, match="critic prm: identity 'noisy', not 'orm'"):
        await stages.score([replace(prm, scorer=orm.scorer)])
    rows = (tmp_path / "set6.jsonl").read_text().replace("What is 0", "How much is 0")
    (tmp_path / "other.jsonl").write_text(rows)
    other = Stages(read_problem_set(tmp_path / "other.jsonl"), stages.folder, 4)
    with pytest.raises(RecordError, match="row 1 are of another problem"):
        await other.generate(SAMPLING, lambda: ScriptedPolicy(solve))
    with pytest.raises(RecordError, match="row 1 are of another problem"):
        list(RecordedRun(stages.folder.path, other.problems).pools(4))


async def test_other_texts_are_scored_and_graded_again_and_lines_of_another_run_refused(
    stages: Stages,
) -> None:
    await run_all(stages)
    path = stages.folder.path / "candidates.jsonl"
    texts = path.read_text()
    path.write_text(texts.replace("Step 1: we add", "Step 1: I add"))
    with pytest.raises(RecordError, match="not graded yet, or by another version"):
        list(RecordedRun(stages.folder.path, stages.problems).pools(4))
    await stages.grade([ByRule(grader_of(""))])
    with pytest.raises(RecordError, match="is of another text; run --stage score"):
        list(RecordedRun(stages.folder.path, stages.problems).pools(4))
    await stages.score(critics())
    assert len(list(RecordedRun(stages.folder.path, stages.problems).pools(4))) == 6
    scored = lines(stages.folder.path / "scores-prm.jsonl")
    await stages.score(critics())
    assert lines(stages.folder.path / "scores-prm.jsonl") == scored
    path.write_text(texts.replace('"run": "', '"run": "x'))
    with pytest.raises(RecordError, match="line 1: it was made with other settings"):
        RecordedRun(stages.folder.path, stages.problems)


async def test_other_pictures_are_refused_and_a_broken_one_costs_its_own_problem(
    tmp_path: Path,
) -> None:
    for number in range(2):
        render(generate("tiles", "test", number)).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    rows = [{"id": str(n), "question": f"What is {n} + 3?", "answer": "3", "image": f"{n}.png"}
            for n in range(2)]  # fmt: skip
    file = tmp_path / "set.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stages = Stages(read_problem_set(file), RunFolder(tmp_path / "run"), 2)
    await stages.generate(SAMPLING, lambda: ScriptedPolicy(solve))
    assert stages.failures == {"generate": (2, 4)}
    render(generate("tiles", "test", 7)).save(tmp_path / "0.png")
    with pytest.raises(RecordError, match="row 1 are for other pictures"):
        await stages.generate(SAMPLING, lambda: ScriptedPolicy(solve))
    await stages.grade([ByRule(grader_of(""))])  # which looks at no picture
    (tmp_path / "0.png").unlink()
    with pytest.raises(ImageError, match=r"0\.png"):
        await stages.score(critics())


async def test_candidate_0_may_be_the_most_likely_one(stages: Stages) -> None:
    policy = ScriptedPolicy(solve)
    await stages.generate(replace(SAMPLING, greedy_first=True), lambda: policy)
    scales = [(request.temperature_scale, len(request.seeds)) for request in policy.asked]
    assert scales == [(0.0, 1), (1.0, 3)] * 6


async def test_scorers_see_the_prompt_that_the_policy_saw(stages: Stages) -> None:
    policy = ScriptedPolicy("Answer: 3")
    await stages.generate(replace(SAMPLING, prompt=PROMPTS["en_v2"]), lambda: policy)
    scorer = ScriptedScorer(lambda _: 0.5, identity="s")
    await stages.score([Critic("prm", scorer, "s")])
    asked = {request.problem.question for request in policy.asked}
    assert asked == {request.problem.question for request in scorer.asked}
    assert all("\\boxed{$FINAL_ANSWER}" in question for question in asked)
    assert {len(batch) for batch in scorer.batches} == {4}  # one call a problem


async def test_the_policys_own_likelihood_is_a_critic(stages: Stages) -> None:
    def told(request: ProposeRequest, seed: int) -> Proposal:
        tokens = [{"token": "a", "logprob": -1.0}, {"token": "b", "logprob": -(seed % 5)}]
        reply = AIMessage("x", response_metadata={"logprobs": {"content": tokens}})
        return Proposal(solve(request, seed), "stop", reply=reply)

    await stages.generate(replace(SAMPLING, likelihood=True), lambda: ScriptedPolicy(told))
    await stages.grade([ByRule(grader_of(""))])
    means = {-(1 + other) / 2 for other in range(5)}
    for pool in RecordedRun(stages.folder.path, stages.problems).pools(4):
        assert {candidate.scores["likelihood"] for candidate in pool.candidates} <= means


async def test_another_grader_is_a_file_beside(stages: Stages) -> None:
    await run_all(stages)
    await stages.grade([ByRule(GRADERS["mathvision"])])
    run = RecordedRun(stages.folder.path, stages.problems, grader="mathvision")
    assert (run.graders, len(list(run.pools(4)))) == (["sameness", "mathvision"], 6)


def _locks(path: str, conn: Any) -> None:
    try:
        with RunFolder(Path(path)).locked():
            conn.send("")
    except ConfigError as error:
        conn.send(str(error))


def test_two_processes_on_one_folder_are_refused(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for held in (True, False):
        ours, theirs = context.Pipe()
        other = context.Process(target=_locks, args=(str(tmp_path), theirs))
        if held:
            with RunFolder(tmp_path).locked():
                other.start()
                assert "another process is at work" in ours.recv()
                other.join()
        else:
            other.start()
            assert ours.recv() == ""
            other.join()
