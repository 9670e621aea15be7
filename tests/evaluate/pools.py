"""Pools for tests: written as strings, or drawn by hypothesis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hypothesis import strategies as st

from vprm_search.evaluate.pool import NO_ANSWER, PooledCandidate, PooledProblem

CRITICS = ("prm:mean", "orm", "likelihood")


def pooled(
    answers: str,
    gold: str = "a",
    scores: Mapping[str, Sequence[float | None]] | None = None,
    name: str = "p",
    rights: Sequence[bool] | None = None,
    **fields: str,
) -> PooledProblem:
    """A pool with an answer per letter, "-" for none; right is what `gold` says, or `rights`."""
    classes = {
        letter: place for place, letter in enumerate(dict.fromkeys(answers.replace("-", "")))
    }
    candidates = tuple(
        PooledCandidate(
            index=place,
            text=f"Step 1: so it is {letter}.\n\nAnswer: {letter}",
            answer="" if letter == "-" else letter,
            vote_class=classes.get(letter, NO_ANSWER),
            right=letter == gold if rights is None else rights[place],
            scores={critic: values[place] for critic, values in (scores or {}).items()},
            generated_tokens=10 + place,
            scored_tokens=100,
            seconds=0.5,
            cost=0.25,
        )
        for place, letter in enumerate(answers)
    )
    made = {"group": name, "variant": "", "category": "", **fields}
    return PooledProblem(id=name, row=1, candidates=candidates, **made)


@st.composite
def pools(draw: st.DrawFn, *, largest: int = 7, mixed: bool = True) -> PooledProblem:
    """Pools with ties, answers that are missing, scores that are; a class may be right in parts."""
    answers = draw(st.text("abc-", min_size=1, max_size=largest))
    size = len(answers)
    score = st.none() | st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
    column = st.lists(score, min_size=size, max_size=size)
    scores = {critic: draw(column) for critic in CRITICS}
    rights = draw(st.lists(st.booleans(), min_size=size, max_size=size)) if mixed else None
    if rights is not None:
        rights = [right and letter != "-" for right, letter in zip(rights, answers, strict=True)]
    return pooled(answers, scores=scores, name=draw(st.text("pq", min_size=1)), rights=rights)
