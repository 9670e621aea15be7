"""What a verifier found: the verdict on one message, and what its author is told of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from typing_extensions import TypedDict  # pydantic cannot show typing's before Python 3.12

from vprm_search.aggregate import path_score
from vprm_search.types import ScoreResult

Outcome = Literal["passed", "failed", "unscored"]


class StepVerdict(TypedDict):
    """One step of the judged message; `score` is None when `reason` says why."""

    text: str
    score: float | None
    reason: str


class Verdict(TypedDict):
    """What the verifier found, as plain JSON.

    `message_id` and `digest` name the message it is about and what that said. `failures` counts
    the messages in a row that did not pass for the same question; `weak_step` is the index of the
    first step below the threshold. `unseen` names what the conversation holds and the reward model
    was not shown: files, audio, pictures beyond the limit.
    """

    outcome: Outcome
    message_id: str
    digest: str
    question_id: str
    score: float | None
    aggregate: str
    threshold: float
    steps: list[StepVerdict]
    weak_step: int | None
    reason: str
    failures: int
    unseen: list[str]


def merge_verdicts(known: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the verdict on every message, by its id, the latest last: a reducer for a state.

    `new` is one verdict, as a verifier node writes it, or a table of them, as a subgraph does.
    """
    added = {str(new["message_id"]): new} if "outcome" in new else new
    kept = {message: verdict for message, verdict in known.items() if message not in added}
    return {**kept, **added}


def verdicts_in(value: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Return the verdicts under a verifier's key, the latest last: one, or one per message."""
    if not value:
        return []
    return [value] if "outcome" in value else list(value.values())


def weigh(
    steps: Sequence[str],
    result: ScoreResult,
    *,
    aggregate: str,
    threshold: float,
    unseen: Sequence[str] = (),
) -> Verdict:
    """Return the verdict on a message with these steps and scores, not yet tied to a message."""
    values = [score.value for score in result.scores]
    score = path_score(aggregate, values)
    weak = (i for i, value in enumerate(values) if value is not None and value < threshold)
    reasons = [score.reason for score in result.scores if score.value is None]
    outcome: Outcome = "unscored"
    if score is not None:
        outcome = "passed" if score >= threshold else "failed"
    return Verdict(
        outcome=outcome,
        message_id="",
        digest="",
        question_id="",
        score=score,
        aggregate=aggregate,
        threshold=threshold,
        steps=[
            StepVerdict(text=text, score=step.value, reason=step.reason)
            for text, step in zip(steps, result.scores, strict=False)
        ],
        weak_step=next(weak, None),
        reason=reasons[0] if reasons else "",
        failures=0,
        unseen=list(unseen),
    )


def count_failures(verdict: Verdict, previous: Mapping[str, Any] | None) -> int:
    """Return how many messages in a row did not pass for this question, this one included.

    A failed message judged twice counts once. What has no score counts at every visit, so that an
    agent that adds nothing does not come back for ever.
    """
    if verdict["outcome"] == "passed":
        return 0
    if not previous or previous["question_id"] != verdict["question_id"]:
        return 1
    counted = int(previous["failures"])
    same = verdict["outcome"] == "failed" and all(
        previous.get(key, verdict[key]) == verdict[key] for key in ("message_id", "digest")
    )
    return max(1, counted) if same else counted + 1


def feedback_on(verdict: Mapping[str, Any]) -> str:
    """Return what to tell the author of a message that did not pass; "" if it passed."""
    if verdict["outcome"] == "passed":
        return ""
    if verdict["outcome"] == "unscored":
        return (
            f"A verifier could not judge your last message ({verdict['reason']}). "
            "Solve the problem again, step by step."
        )
    head = (
        f"A verifier gave your last solution {verdict['score']:.2f}; "
        f"{verdict['threshold']:.2f} is needed to pass."
    )
    weak = verdict["weak_step"]
    if weak is None:  # with a product, steps that are all good can make a weak path
        return f"{head} Solve the problem again, checking every step against the image."
    step = verdict["steps"][weak]
    quoted = " ".join(str(step["text"]).split())[:300]
    return (
        f"{head} Step {weak + 1} is the first that looks wrong "
        f'(probability of being right {step["score"]:.2f}): "{quoted}". '
        "Check it against the image and solve the problem again from there."
    )
