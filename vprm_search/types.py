"""The data that moves between the parts of a search: frozen, JSON in and out.

Three groups: the *problem* (question and image digests), the *requests and replies* of the two
seams (policy and scorer), and the *records* a search leaves behind (nodes, usage, result).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, get_args, runtime_checkable

from vprm_search.errors import RecordError

T = TypeVar("T")

Json = Any
"""A JSON value: dict with string keys, list, str, int, float, bool or None."""

NodeId = str
NodeStatus = Literal["open", "finished", "truncated", "pruned", "failed"]
Until = Literal["step", "end"]
Role = Literal["", "redo", "lookahead"]
Finish = Literal["step", "stop", "length", "error"]
Cause = Literal[
    "",
    "duplicate",
    "redone",
    "unscored",
    "max_depth",
    "pruned",
    "outranked",
    "no_share",
    "rollout",
    "not_needed",
    "budget",
    "failed",
]
"""Why a step is where its path ends, for programs; a record's `reason` says it in words.

"duplicate": merged into an equal sibling; "redone": a weak draft that another policy proposes
again; "unscored": a step of the path has no score; "max_depth": the depth limit; "pruned": a
threshold on the path score; "outranked": after the first so many; "no_share": resampling gave it
no next step; "rollout": a lookahead step that has served; "not_needed": the search, or its part of
it, ended without it; "budget": a limit ended the search; "failed": the policy's call failed or
gave nothing usable; "": none of these, such as a rule of your own.
"""

NODE_STATUSES: tuple[NodeStatus, ...] = ("open", "finished", "truncated", "pruned", "failed")
ROLES: tuple[Role, ...] = ("", "redo", "lookahead")
CAUSES: tuple[Cause, ...] = get_args(Cause)


# --- the problem -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Problem:
    """A question and the images it is about.

    `images` holds content digests ("sha256-<64 hex>"), never bytes; an image store turns a digest
    into pixels. They stand where the question says `<image>`, in this order, or else before it.
    """

    question: str
    images: tuple[str, ...] = ()
    system: str = ""

    def to_json(self) -> dict[str, Json]:
        """Return the problem as plain JSON."""
        return {"question": self.question, "images": list(self.images), "system": self.system}

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> Problem:
        """Read a problem written by `to_json`. Raises `RecordError` on a wrong shape."""
        try:
            return cls(
                str(data["question"]),
                tuple(str(d) for d in data.get("images", ())),
                str(data.get("system", "")),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise RecordError(f"not a problem record: {error!r}; expected 'question'") from error


@dataclass(frozen=True, slots=True)
class ImageData:
    """One normalised image: its digest, and its bytes as PNG (RGB, upright, no alpha)."""

    digest: str
    png: bytes = field(repr=False)


# --- the scorer's seam -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StepScore:
    """P('+') of one step given the problem and the steps before it, in [0, 1].

    `value` is None when the step could not be scored, and `reason` then says why; an unknown score
    is never written as 0.0.
    """

    value: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Score every step of one path. `images` are the problem's images, in the problem's order."""

    problem: Problem
    steps: tuple[str, ...]
    images: tuple[ImageData, ...] = ()


@dataclass(frozen=True, slots=True)
class ScoreCost:
    """What one request took, as far as the scorer can tell.

    `tokens_sent` is what one forward pass over the request's whole path would compute,
    `tokens_computed` what was computed for it. What several requests share counts for one of
    them; a forward pass is divided evenly among the requests it computed for, so that sums over
    requests are sums of work done.
    """

    tokens_sent: int = 0
    tokens_computed: int = 0
    images_encoded: int = 0
    forward_passes: float = 0.0


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """The scores of one request, one per step, in order.

    `prefix_tokens` counts the tokens before the first step (system prompt, images, question) and
    `step_tokens[i]` those of step i with its turn markers: what the path costs when every prefix
    is computed once. `cost` is what it really took this time, zeros where a scorer does not say;
    equality does not look at it.
    """

    scores: tuple[StepScore, ...]
    prefix_tokens: int = 0
    step_tokens: tuple[int, ...] = ()
    cost: ScoreCost = field(default=ScoreCost(), compare=False)

    @classmethod
    def failed(cls, steps: int, reason: str) -> ScoreResult:
        """A result in which none of `steps` steps has a score, for the given reason."""
        return cls(tuple(StepScore(None, reason) for _ in range(steps)), 0, (0,) * steps)


@runtime_checkable
class StepScorer(Protocol):
    """Anything that gives reasoning steps a probability of being right."""

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Score all requests: same length, same order; one item's failure is a value."""
        ...


# --- the policy's seam -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProposeRequest:
    """Ask for `len(seeds)` continuations of one path.

    With `until="step"` each child is one step; with `until="end"` the policy writes the whole rest
    of the solution. `seeds` are 63-bit integers, one per child. `policy` names which of several
    policies is meant; a policy that stands alone ignores it. What has not come after `timeout_s`
    seconds may be given up: such children are failed proposals. `temperature_scale` is a factor
    on the policy's own sampling temperature; a policy that does not know it ignores the factor.
    """

    problem: Problem
    steps: tuple[str, ...]
    seeds: tuple[int, ...]
    until: Until = "step"
    images: tuple[ImageData, ...] = ()
    policy: str = ""
    timeout_s: float | None = None
    temperature_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Proposal:
    """One continuation.

    `finish`: "step" (cut at the step separator), "stop" (the policy ended its answer itself),
    "length" (cut by the token limit: not finished) or "error" (`error` says why, `text` is empty).
    `prompt_tokens` is counted once per call, on the first child of the call. `out_of_time` marks
    an error that is the search's own: its time was over before the call had answered.
    """

    text: str
    finish: Finish
    generated_tokens: int = 0
    prompt_tokens: int = 0
    requests: int = 0
    error: str = ""
    out_of_time: bool = False


@runtime_checkable
class Policy(Protocol):
    """Anything that proposes reasoning steps."""

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        """Answer all requests: one list per request, one proposal per seed, in order.

        A failed call costs the candidates of that call: proposals with `finish="error"`.
        """
        ...


# --- what a search leaves behind ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Usage:
    """What was spent.

    `scored_tokens` counts as if every shared prefix were computed once: it depends on the search
    alone. `tokens_sent`, `tokens_computed`, `images_encoded` and `forward_passes` are what the
    scorer reports of its work (`ScoreCost`): zeros if it reports nothing.
    """

    candidates: int = 0
    generated_tokens: int = 0
    prompt_tokens: int = 0
    scored_tokens: int = 0
    scored_steps: int = 0
    requests: int = 0
    rounds: int = 0
    seconds: float = 0.0
    tokens_sent: int = 0
    tokens_computed: int = 0
    images_encoded: int = 0
    forward_passes: float = 0.0

    def work(self) -> str:
        """Return what the scorer reported of its work in a few words, "" if it reported nothing."""
        if not self.tokens_sent:
            return ""
        return (
            f"{self.tokens_computed} of {self.tokens_sent} tokens computed in "
            f"{self.forward_passes:.4g} passes, {self.images_encoded} images encoded"
        )

    def cost(self, prices: PriceList) -> float:
        """Return what this costs by a price list (`budget.Prices`), in its currency."""
        return prices.cost_of(self)

    def to_json(self) -> dict[str, Json]:
        """Return the usage as plain JSON."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> Usage:
        """Read a usage written by `to_json`. Raises `RecordError` on a wrong shape."""
        return _from_json(cls, data)


class PriceList(Protocol):
    """Anything that can say what a usage costs."""

    def cost_of(self, usage: Usage) -> float:
        """Return the cost of `usage`."""
        ...


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """One step in the tree. The root has no parent, no text and index 0.

    `path_scores` maps an aggregation's name to the aggregate of the step scores root → node.
    `policy` names the policy that proposed the step, where there are several. `role` says why it
    was proposed: "" as a candidate, "redo" in place of a rejected draft, "lookahead" only to score
    the candidate above it. `reason` says in words, and `cause` for programs, why a path ends here;
    a "duplicate" names the sibling it was `merged_into`. What the scorer reports of its work
    (`tokens_sent` and what follows) stands on one record of a round, for the whole round.
    """

    id: NodeId
    parent: NodeId | None
    index: int
    text: str = ""
    status: NodeStatus = "open"
    reason: str = ""
    score: float | None = None
    score_reason: str = ""
    path_scores: Mapping[str, float] = field(default_factory=dict)
    answer: str | None = None
    seed: int = 0
    round: int = 0
    generated_tokens: int = 0
    prompt_tokens: int = 0
    scored_tokens: int = 0
    requests: int = 0
    tokens_sent: int = 0
    tokens_computed: int = 0
    images_encoded: int = 0
    forward_passes: float = 0.0
    policy: str = ""
    role: Role = ""
    cause: Cause = ""
    merged_into: NodeId | None = None

    def to_json(self) -> dict[str, Json]:
        """Return the record as plain JSON; fields at their default are left out.

        Except the cause of a reason: a record with a reason and no cause is one of version 0.1.
        """
        data: dict[str, Json] = {"id": self.id, "parent": self.parent, "index": self.index}
        for name, default in _OPTIONAL_FIELDS.items():
            value = getattr(self, name)
            if value != default:
                data[name] = dict(value) if name == "path_scores" else value
        if self.reason:
            data["cause"] = self.cause
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> NodeRecord:
        """Read a record written by `to_json`. Raises `RecordError` on a wrong shape or value."""
        if not isinstance(data, Mapping) or not isinstance(data.get("id"), str):
            raise RecordError(f"not a node record: {str(data)[:80]!r}")
        where = f"node {data['id']}"
        unknown = set(data) - _NODE_FIELDS
        missing = {"parent", "index"} - set(data)
        if unknown or missing:
            raise RecordError(f"{where}: unknown {sorted(unknown)}, missing {sorted(missing)}")
        if data.get("status", "open") not in NODE_STATUSES:
            raise RecordError(f"{where}: status {data.get('status')!r} is not known")
        if data.get("role", "") not in ROLES:
            raise RecordError(f"{where}: role {data.get('role')!r} is not known")
        if data.get("cause", "") not in CAUSES:
            raise RecordError(f"{where}: cause {data.get('cause')!r} is not known")
        for name, value in data.items():
            if type(value) not in _FIELD_TYPES[name]:
                raise RecordError(f"{where}: {name} is {value!r}, a {type(value).__name__}")
            number = name != "score" and type(value) in (int, float)
            if number and not 0 <= value < math.inf:
                raise RecordError(f"{where}: {name} is {value}, it cannot be negative or infinite")
        scores = {name: _probability(where, v) for name, v in data.get("path_scores", {}).items()}
        score = data.get("score")
        score = None if score is None else _probability(where, score)
        passes = float(data.get("forward_passes", 0.0))
        if data.get("reason") and "cause" not in data:
            data = with_cause(data)
        return cls(**{**data, "score": score, "path_scores": scores, "forward_passes": passes})


def with_cause(record: Mapping[str, Json]) -> dict[str, Json]:
    """Return a record of version 0.1, whose causes stood in its reason's words, with its cause."""
    reason, status = str(record["reason"]), record.get("status", "open")
    words = _CAUSES_IN_WORDS.get("failed" if status == "failed" else "", ())
    cause: Cause = next((c for start, c in words if reason.startswith(start)), "")
    if cause == "duplicate":
        return {**record, "cause": cause, "merged_into": reason.rpartition(" ")[2]}
    return {**record, "cause": cause}


def _probability(where: str, value: Json) -> float:
    # One type of number only: 1 and 1.0 are equal, but their canonical JSON is not.
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise RecordError(f"{where}: score {value!r} is not a probability")
    return float(value)


_NODE_FIELDS = frozenset(NodeRecord.__slots__)
_FIELD_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("id", "text", "status", "reason", "score_reason"), (str,)),
    **dict.fromkeys(("policy", "role", "cause"), (str,)),
    **dict.fromkeys(("parent", "answer", "merged_into"), (str, type(None))),
    **dict.fromkeys(("index", "seed", "round"), (int,)),
    **dict.fromkeys(("generated_tokens", "prompt_tokens", "scored_tokens", "requests"), (int,)),
    **dict.fromkeys(("tokens_sent", "tokens_computed", "images_encoded"), (int,)),
    "forward_passes": (float, int),
    "score": (float, int, type(None)),
    "path_scores": (dict,),
}
_OPTIONAL_FIELDS: dict[str, Json] = {
    "text": "",
    "status": "open",
    "reason": "",
    "score": None,
    "score_reason": "",
    "path_scores": {},
    "answer": None,
    "seed": 0,
    "round": 0,
    "generated_tokens": 0,
    "prompt_tokens": 0,
    "scored_tokens": 0,
    "requests": 0,
    "tokens_sent": 0,
    "tokens_computed": 0,
    "images_encoded": 0,
    "forward_passes": 0.0,
    "policy": "",
    "role": "",
    "cause": "",
    "merged_into": None,
}
_CAUSES_IN_WORDS: dict[str, tuple[tuple[str, Cause], ...]] = {
    "failed": (("cut by budget", "budget"), ("", "failed")),
    "": (
        ("duplicate of ", "duplicate"),
        ("near-duplicate of ", "duplicate"),
        ("redone by ", "redone"),
        ("no score: ", "unscored"),
        ("max_depth ", "max_depth"),
        ("prune_below: ", "pruned"),
        ("prune_margin: ", "pruned"),
        ("outranked: ", "outranked"),
        ("rebase: ", "no_share"),
        ("resampled: ", "no_share"),
        ("context_cost ", "no_share"),
        ("lookahead of ", "rollout"),
        ("subtree ", "not_needed"),
        ("width ", "not_needed"),
        ("not needed", "not_needed"),
        ("cut by budget", "budget"),
    ),
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A path that may be the answer, with the scores of its steps."""

    node: NodeId
    steps: tuple[str, ...]
    step_scores: tuple[float | None, ...]
    status: NodeStatus
    answer: str | None
    score: float | None
    votes: float = 0.0

    def to_json(self) -> dict[str, Json]:
        """Return the candidate as plain JSON."""
        return {
            "node": self.node,
            "steps": list(self.steps),
            "step_scores": list(self.step_scores),
            "status": self.status,
            "answer": self.answer,
            "score": self.score,
            "votes": self.votes,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> Candidate:
        """Read a candidate written by `to_json`. Raises `RecordError` on a wrong shape."""
        lists = {name: _items(data, name) for name in ("steps", "step_scores")}
        return _from_json(cls, {**data, **lists})


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The outcome of a search.

    `ended_by` is the strategy's reason ("all paths ended"), or the budget that ran out
    ("budget: generated_tokens 512 of 500"). `fallback` is True when no path finished and the best
    truncated path was taken instead.
    """

    answer: str | None
    text: str
    score: float | None
    node: NodeId | None
    ended_by: str
    fallback: bool
    candidates: tuple[Candidate, ...]
    usage: Usage

    def to_json(self) -> dict[str, Json]:
        """Return the result as plain JSON."""
        return {
            "answer": self.answer,
            "text": self.text,
            "score": self.score,
            "node": self.node,
            "ended_by": self.ended_by,
            "fallback": self.fallback,
            "candidates": [c.to_json() for c in self.candidates],
            "usage": self.usage.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> SearchResult:
        """Read a result written by `to_json`. Raises `RecordError` on a wrong shape."""
        candidates = tuple(Candidate.from_json(item) for item in _items(data, "candidates"))
        usage = Usage.from_json(data.get("usage", {}))
        return _from_json(cls, {**data, "candidates": candidates, "usage": usage})


def _items(data: Mapping[str, Json], name: str) -> tuple[Json, ...]:
    items = data.get(name, ()) if isinstance(data, Mapping) else None
    if not isinstance(items, list | tuple):
        raise RecordError(f"not a record: expected a JSON object with a list {name!r}")
    return tuple(items)


def _from_json(kind: type[T], data: Mapping[str, Json]) -> T:
    try:
        return kind(**data)
    except TypeError as error:
        raise RecordError(f"not a {kind.__name__} record: {error}") from error
