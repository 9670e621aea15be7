"""Candidates of a problem set: one line for each, with its own id and seed, failed calls included.

A line is what the policy gave and what it cost; the answer is read out of the text when candidates
are graded, never stored as what was said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from vprm_search.datasets.problem_set import Item, ProblemSet
from vprm_search.errors import RecordError
from vprm_search.evaluate.folder import Facts, key_of
from vprm_search.evaluate.lines import Amount, Count, Keyed, KeyedLines, Line
from vprm_search.evaluate.prompts import Prompt
from vprm_search.ids import child_seed, digest
from vprm_search.types import Finish

FILE_NAME = "candidates.jsonl"
FACTS = "candidates"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How candidates are sampled; how many may grow, so it is no part of this.

    Args:
        policy: names the policy.
        prompt: what a question is put into.
        temperature: of the policy (.7, as in the paper).
        top_p: share of the likeliest tokens that are drawn from (1: all).
        max_tokens: tokens a solution may have (4096).
        greedy_first: whether candidate 0 is the most likely solution, as in VLMEvalKit's best-of-N
            (temperature 0), and not a sample.
        seed: makes all draws.
        likelihood: whether the policy is asked for the probabilities of its tokens.
    """

    policy: str
    prompt: Prompt
    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 4096
    greedy_first: bool = False
    seed: int = 0
    likelihood: bool = False

    def facts(self) -> dict[str, Any]:
        """Return the settings as plain JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One solution, or why there is none.

    Args:
        id: names problem, settings and place.
        row: the row of its problem in the set's file, from 1.
        index: its place among the problem's candidates, from 0.
        text: the solution, "" if the call failed.
        finish: "stop", "length", "error" (the call failed, and is made again) or "unusable" (it did
            not, and the reply is no solution: a refusal, or nothing).
        error: why there is no solution, "" if there is one.
        likelihood: mean log probability of its tokens, None if the policy does not tell.
        generated_tokens, prompt_tokens, cached_tokens, requests: as in `types.Counts`; the first
            candidate of a call has the call's prompt.
        seconds: its share of the wall time, those that were sampled side by side sharing it.
    """

    id: str
    row: int
    index: int
    text: str = ""
    finish: str = "stop"
    error: str = ""
    likelihood: float | None = None
    generated_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    requests: int = 0
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether its call failed: nobody knows what the policy would have written."""
        return self.finish == "error"

    @property
    def content(self) -> str:
        """Names the candidate with its text: what scores and grades are of."""
        return digest("content", self.id, self.text).hex()[:16]


class _Shape(Keyed):
    id: str
    text: str
    finish: Finish | Literal["unusable"]
    error: str
    likelihood: float | None
    generated_tokens: Count
    prompt_tokens: Count
    cached_tokens: Count
    requests: Count
    seconds: Amount
    item: str
    pictures: str


class CandidateFile:
    """The candidates of a run.

    Args:
        folder: of the run.
        facts: what the candidates are made with (`Sampling.facts`).

    Raises:
        RecordError: a damaged line, or one of a run with other settings.
    """

    def __init__(self, folder: Path, facts: Facts) -> None:
        self.run = key_of(facts)
        self.lines = KeyedLines(
            folder / FILE_NAME, _Shape, self.run, lambda line: line["finish"] == "error"
        )

    def has(self, item: Item, index: int) -> bool:
        """Tell whether a candidate is there, and its call did not fail."""
        return self.lines.has(item.row, index)

    def of(self, item: Item) -> list[Candidate]:
        """Return the candidates of a problem in the order of their indices, failed ones too.

        Raises `RecordError` for candidates of another problem.
        """
        found = []
        for line in self.lines.of(item.row).values():
            self._check(item, line)
            found.append(Candidate(**{name: line[name] for name in Candidate.__slots__}))
        return found

    def largest(self, problems: ProblemSet) -> int:
        """Return the most candidates, without a gap, that a problem has, failed ones counted."""
        return max(self.lines.first(item.row) for item in problems)

    def append(self, item: Item, pictures: str, candidates: list[Candidate]) -> None:
        """Write candidates of a problem."""
        told = {"item": item_key(item), "pictures": pictures}
        self.lines.append([{**asdict(candidate), **told} for candidate in candidates])

    def checked(self, problems: ProblemSet) -> Iterator[tuple[Item, str]]:
        """Yield every problem with the digest of its pictures, read from their files.

        Raises `RecordError` at one that has candidates for another problem or other pictures.
        """
        for item in problems:
            pictures = picture_key(problems, item)
            first = self.lines.one(item.row)
            if first is not None:
                self._check(item, first)
                if first["pictures"] != pictures:
                    raise RecordError(
                        f"{self.lines.path}: the candidates of row {item.row} are for other "
                        "pictures than the set has now; give those, or another --out folder"
                    )
            yield item, pictures

    def _check(self, item: Item, line: Line) -> None:
        if line["item"] != item_key(item):
            raise RecordError(
                f"{self.lines.path}: the candidates of row {item.row} are of another problem than "
                "the one that the set has there; give the set they were made for, or another "
                "--out folder"
            )


def item_key(item: Item) -> str:
    """Name a problem by what the policy is asked: id, question and choices."""
    return digest("item", item.id, item.question, "choices", *item.choices).hex()[:16]


def picture_key(problems: ProblemSet, item: Item) -> str:
    """Name the pictures of a problem by their files' bytes."""
    return digest("pictures", *problems.picture_digests(item)).hex()[:16]


def candidate_id(run: str, item: Item, pictures: str, index: int) -> str:
    """Name a candidate by the settings, its problem with its pictures, and its place."""
    return digest("candidate", run, item_key(item), pictures, index).hex()[:32]


def seed_of(run: str, item: Item, pictures: str, index: int) -> int:
    """Return the seed that a candidate is drawn with."""
    return child_seed(digest("seeds", run, item_key(item), pictures).hex(), index)
