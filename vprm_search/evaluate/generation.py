"""The first stage: sample candidates for every problem of a set, each kept as it comes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vprm_search.budget import Prices
from vprm_search.datasets.problem_set import Item, ProblemSet
from vprm_search.errors import ImageError
from vprm_search.evaluate.candidates import Candidate, CandidateFile, candidate_id, seed_of
from vprm_search.evaluate.prompts import Prompt
from vprm_search.evaluate.side_by_side import FREE, Done, Losses, Progress, SharedTime, side_by_side
from vprm_search.steps import normalise_text
from vprm_search.types import ImageData, Policy, Problem, Proposal, ProposeRequest, Usage

PIECE = 16
"""Candidates of a problem that are asked for together; a run that is killed loses no others."""


@dataclass(frozen=True, slots=True)
class _Piece:
    item: Item
    pictures: str
    indices: tuple[int, ...]


@dataclass(slots=True)
class Generation:
    """Candidates being sampled.

    Args:
        problems: the set.
        policy: what writes solutions.
        prompt: what a question is put into.
        greedy_first: whether candidate 0 is asked for at temperature 0.
        file: where candidates are kept; those that are there, and did not fail, are not asked for.
        width: problems side by side, as far as the policy takes that many (8).
        prices: what tokens cost. Default: nothing.
        progress: is told of all that comes.
    """

    problems: ProblemSet
    policy: Policy
    prompt: Prompt
    greedy_first: bool
    file: CandidateFile
    width: int = 8
    prices: Prices = FREE
    progress: Progress = lambda _: None

    async def run(self, n: int) -> None:
        """Bring every problem to `n` candidates.

        A call that fails is a line, too, and is made again by the next run.

        Raises:
            RecordError: there are candidates for another problem or other pictures.
            SearchError: nothing came of many calls in a row.
        """
        clock, losses = SharedTime(), Losses("generation")

        async def work(piece: _Piece) -> None:
            begun = clock.begin_one()
            proposals = await self._proposed(piece)
            seconds = clock.end_one(begun)[0] / len(piece.indices)
            found = [
                self._candidate(piece, index, proposal, seconds)
                for index, proposal in zip(piece.indices, proposals, strict=True)
            ]
            self.file.append(piece.item, piece.pictures, found)
            failed = [candidate.error for candidate in found if candidate.failed]
            self.progress(
                Done(
                    len(found),
                    len(failed),
                    generated_tokens=sum(candidate.generated_tokens for candidate in found),
                    cost=sum(cost_of(candidate, self.prices) for candidate in found),
                )
            )
            losses.note(failed[0] if len(failed) == len(found) else "")

        await side_by_side(self._pieces(n), work, self.width)

    def _pieces(self, n: int) -> Iterator[_Piece]:
        for item, pictures in self.file.checked(self.problems):
            left = [index for index in range(n) if not self.file.has(item, index)]
            for start in range(0, len(left), PIECE):
                yield _Piece(item, pictures, tuple(left[start : start + PIECE]))

    async def _proposed(self, piece: _Piece) -> list[Proposal]:
        try:
            loaded = self.problems.load(piece.item)
        except ImageError as error:  # one problem's, and not the end of all
            return [Proposal("", "error", error=str(error)) for _ in piece.indices]
        problem = self.prompt.put(loaded.problem)
        first = self.greedy_first and piece.indices[0] == 0
        parts = [piece.indices[:1], piece.indices[1:]] if first else [piece.indices]
        requests = [
            self._request(problem, loaded.images, piece, indices, greedy=first and not place)
            for place, indices in enumerate(parts)
            if indices
        ]
        replies = await self.policy.propose(requests)
        return [proposal for reply in replies for proposal in reply]

    def _request(
        self,
        problem: Problem,
        images: Sequence[ImageData],
        piece: _Piece,
        indices: Sequence[int],
        *,
        greedy: bool,
    ) -> ProposeRequest:
        run = self.file.run
        return ProposeRequest(
            problem,
            (),
            tuple(seed_of(run, piece.item, piece.pictures, index) for index in indices),
            until="end",
            images=tuple(images),
            temperature_scale=0.0 if greedy else 1.0,
        )

    def _candidate(
        self, piece: _Piece, index: int, proposal: Proposal, seconds: float
    ) -> Candidate:
        lost = proposal.finish == "error"
        return Candidate(
            id=candidate_id(self.file.run, piece.item, piece.pictures, index),
            row=piece.item.row,
            index=index,
            text=normalise_text(proposal.text),
            finish="unusable" if lost and proposal.unusable else proposal.finish,
            error=(proposal.error or "no reason given") if lost else "",
            likelihood=None if lost else likelihood_of(proposal.reply),
            generated_tokens=proposal.generated_tokens,
            prompt_tokens=proposal.prompt_tokens,
            cached_tokens=proposal.cached_tokens,
            requests=proposal.requests,
            seconds=seconds,
        )


def cost_of(candidate: Candidate, prices: Prices) -> float:
    """Return what sampling a candidate cost, in the currency of the prices."""
    return prices.cost_of(
        Usage(
            generated_tokens=candidate.generated_tokens,
            prompt_tokens=candidate.prompt_tokens,
            cached_tokens=candidate.cached_tokens,
            requests=candidate.requests,
        )
    )


def likelihood_of(reply: Any) -> float | None:
    """Return the mean log probability of a reply's tokens, None if it does not tell them.

    The mean, since the sum favours short solutions.
    """
    told = getattr(reply, "response_metadata", {}).get("logprobs")
    tokens = told.get("content") if isinstance(told, Mapping) else None
    try:
        values = [float(token["logprob"]) for token in tokens or ()]
    except (KeyError, TypeError, ValueError):
        return None
    mean = math.fsum(values) / len(values) if values else math.nan
    return mean if math.isfinite(mean) else None
