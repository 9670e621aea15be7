"""The data that moves between the parts of a search: frozen, JSON in and out.

Three groups: the *problem* (question and image digests), the *requests and replies* of the two
seams (policy and scorer), and the *records* a search leaves behind (nodes, usage, result).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from operator import attrgetter
from typing import Annotated, Any, Literal, Protocol, get_args, runtime_checkable

from pydantic import ConfigDict, Field, with_config

from vprm_search.errors import RecordError
from vprm_search.records import read_record

Json = Any
"""A JSON value: dict with string keys, list, str, int, float, bool or None."""

NodeId = str
NodeStatus = Literal["open", "finished", "truncated", "pruned", "failed"]
Until = Literal["step", "end"]
Role = Literal["", "redo", "lookahead", "completion"]
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
    "unusable",
    "review",
]
"""Why a step is where its path ends, for programs; a record's `reason` says it in words.

"duplicate": merged into an equal sibling; "redone": a weak draft that another policy proposes
again; "unscored": a step of the path has no score (older records); "max_depth": the
depth limit; "pruned": a threshold on the path score; "outranked": after the first so many;
"no_share": resampling gave it
no next step; "rollout": a lookahead step that has served; "not_needed": the search, or its part of
it, ended without it; "budget": a limit ended the search; "failed": the policy's call failed;
"unusable": it succeeded, and its reply is no step (both are "failed" in older records); "review": a
person put it aside; "": none of these, such as a rule of your own.
"""

NODE_STATUSES: tuple[NodeStatus, ...] = get_args(NodeStatus)

# What stored records must look like is said by their types; pydantic checks it when one is read.
# Numbers are strict: no text, no bool, no 1.0 for 1; and a float is one, since the canonical JSON
# of 1 and 1.0 differs.
_Count = Annotated[int, Field(ge=0, strict=True)]
_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
_Probability = Annotated[float, Field(ge=0, le=1, strict=True)]
_Flag = Annotated[bool, Field(strict=True)]
_stored = with_config(ConfigDict(extra="forbid"))


@_stored
@dataclass(frozen=True, kw_only=True)
class Counts:
    """What something cost, wherever it is counted: one call, one score, one node, one search.

    `generated_tokens`, `prompt_tokens` and `requests` are the policy's; `cached_tokens` are those
    of its prompts that the provider had remembered. `scored_tokens` counts
    what was scored as if every shared prefix were computed once. The others are the scorer's work
    as far as it can tell: `tokens_sent` is what one forward pass over every path asked for would
    compute, `tokens_computed` what was computed. What several requests share counts for one of
    them; a forward pass is divided evenly among the requests it computed for, so that sums over
    requests are sums of work done.
    """

    generated_tokens: _Count = 0
    prompt_tokens: _Count = 0
    cached_tokens: _Count = 0
    scored_tokens: _Count = 0
    requests: _Count = 0
    tokens_sent: _Count = 0
    tokens_computed: _Count = 0
    images_encoded: _Count = 0
    forward_passes: _Amount = 0.0

    def counts(self) -> dict[str, Any]:
        """Return the counts by name, as records store them, and nothing else."""
        return dict(zip(COUNTED, counted_values(self), strict=True))

    def __add__(self, other: Counts) -> Counts:
        """Return the sums, as plain `Counts`."""
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in COUNTED})


COUNTED: tuple[str, ...] = tuple(entry.name for entry in fields(Counts))
"""The names of the counts."""

counted_values: Callable[[Counts], tuple[Any, ...]] = attrgetter(*COUNTED)
"""Returns the values of the counts."""


# --- the problem -------------------------------------------------------------------------------


@with_config(ConfigDict(extra="ignore"))
@dataclass(frozen=True, slots=True)
class Problem:
    """A question and the images it is about.

    `images` holds content digests ("sha256-<64 hex>"), never bytes; an image store turns a digest
    into pixels. They stand where the question says `<image>`, in this order, or else before it.
    `context` is the digest of the conversation in which it was asked, "" for a question that
    stands alone: the same question in two conversations is two problems. `choices` are the texts of
    the choices A, B, … of a multiple-choice question: a letter, its text and both are one answer.
    They are shown to nobody, so the question holds them, too; what they are in a question that
    says so (`answers.choices_in`) need not be given.
    """

    question: str
    images: tuple[str, ...] = ()
    system: str = ""
    context: str = ""
    choices: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Json]:
        """Return the problem as plain JSON."""
        data = {"question": self.question, "images": list(self.images), "system": self.system}
        more = {"context": self.context, "choices": list(self.choices)}
        return data | {name: value for name, value in more.items() if value}

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> Problem:
        """Read a problem written by `to_json`. Raises `RecordError` on a wrong shape."""
        return read_record(cls, data, "not a problem record")


@dataclass(frozen=True, slots=True)
class ImageData:
    """One normalised image: its digest, and its bytes as PNG (RGB, upright, no alpha)."""

    digest: str
    png: bytes = field(repr=False)


# --- the scorer's seam -------------------------------------------------------------------------


NO_SCORER = "the search has no scorer"
"""Why no step of a search has a score where there is nothing that scores."""


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
    """Score every step of one path. `images` are the problem's images, in the problem's order.

    `recompute` asks for the computation itself: what another process or object computed must not
    answer. A scorer that always computes ignores it.
    """

    problem: Problem
    steps: tuple[str, ...]
    images: tuple[ImageData, ...] = ()
    recompute: bool = field(default=False, compare=False)


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
    cost: Counts = field(default=Counts(), compare=False)

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
    on the policy's own sampling temperature. No child may have more than `max_tokens` tokens: one
    that would ends there, with finish "length". A policy that does not know one of the last two
    ignores it.

    `messages` is the conversation that ends with the question: LangChain messages with their
    pictures in them, the system prompt included. Empty for a question that stands alone (then
    `problem` and `images` say all); a policy that knows single questions only takes
    `problem.question`, which names what the question refers to.
    """

    problem: Problem
    steps: tuple[str, ...]
    seeds: tuple[int, ...]
    until: Until = "step"
    images: tuple[ImageData, ...] = ()
    policy: str = ""
    timeout_s: float | None = None
    temperature_scale: float = 1.0
    messages: tuple[Any, ...] = field(default=(), repr=False, compare=False)
    max_tokens: int | None = None


@dataclass(frozen=True)
class Proposal(Counts):
    """One continuation.

    `finish`: "step" (cut at the step separator), "stop" (the policy ended its answer itself),
    "length" (cut by the token limit: not finished) or "error" (`error` says why, `text` is empty).
    Of the counts, `generated_tokens`, `prompt_tokens` and `requests` are the policy's to fill in;
    `prompt_tokens` is counted once per call, on the first child of the call. `out_of_time` marks
    an error that is the search's own: its time was over before the call had answered; `unusable`
    one of the model's: it answered, and not with a step.

    `reply` is what the policy's client gave, for those who need more of it than the text: a
    LangChain message, or the exception of a call that failed. No search reads it.
    """

    text: str
    finish: Finish
    error: str = ""
    out_of_time: bool = False
    unusable: bool = False
    reply: Any = field(default=None, repr=False, compare=False)


@runtime_checkable
class Policy(Protocol):
    """Anything that proposes reasoning steps."""

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        """Answer all requests: one list per request, one proposal per seed, in order.

        A failed call costs the candidates of that call: proposals with `finish="error"`.
        """
        ...


# --- what a search leaves behind ---------------------------------------------------------------


@_stored
@dataclass(frozen=True)
class Usage(Counts):
    """What a search has spent: the counts, and candidates, scored steps, rounds and seconds.

    `scored_tokens` depends on the search alone. `tokens_sent`, `tokens_computed`, `images_encoded`
    and `forward_passes` are what the scorer reports of its work: zeros if it reports nothing.
    """

    candidates: _Count = 0
    scored_steps: _Count = 0
    rounds: _Count = 0
    seconds: _Amount = 0.0

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
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> Usage:
        """Read a usage written by `to_json`. Raises `RecordError` on a wrong shape."""
        return read_record(cls, data, "not a usage record")


class PriceList(Protocol):
    """Anything that can say what a usage costs."""

    def cost_of(self, usage: Usage) -> float:
        """Return the cost of `usage`."""
        ...


@_stored
@dataclass(frozen=True)
class NodeRecord(Counts):
    """One step in the tree. The root has no parent, no text and index 0.

    `path_scores` maps an aggregation's name to the aggregate of the step scores root → node.
    `policy` names the policy that proposed the step, where there are several. `role` says why it
    was proposed: "" as a candidate, "redo" in place of a rejected draft, "lookahead" only to score
    the candidate above it, "completion" as the rest of its path, asked for so that a search under a
    budget has a finished path. `reason` says in words, and `cause` for programs, why a path ends
    here; a "duplicate" names the sibling it was `merged_into`. A record without text is an end
    marker (the answer ended at the step before), or, if `blank`, an empty step. `score_reason`
    says why there is no score, and stays where one came in a later round. What the scorer
    reports of its work (`tokens_sent` and what follows) stands on one record of a round, for the
    whole round.
    """

    id: NodeId
    parent: NodeId | None
    index: _Count
    text: str = ""
    status: NodeStatus = "open"
    reason: str = ""
    score: _Probability | None = None
    score_reason: str = ""
    path_scores: Mapping[str, _Probability] = field(default_factory=dict)
    answer: str | None = None
    seed: _Count = 0
    round: _Count = 0
    policy: str = ""
    role: Role = ""
    cause: Cause = ""
    merged_into: NodeId | None = None
    blank: _Flag = False

    @property
    def is_step(self) -> bool:
        """Whether this is a step, which has a score of its own: not the root, no end marker."""
        return bool(self.text) or self.blank

    @property
    def is_aside(self) -> bool:
        """Whether it stands beside the strategy's own tree: its parent may still be expanded."""
        return self.role in ("lookahead", "completion")

    def but(self, **changes: Any) -> NodeRecord:
        """Return the record with other values in the named fields: a quick `dataclasses.replace`.

        A search makes several per candidate and round, so nothing is checked and the values are
        copied in one go.
        """
        return changed_record(self, changes)

    def to_json(self) -> dict[str, Json]:
        """Return the record as plain JSON; fields at their default are left out.

        Except the cause of a reason: a record with a reason and no cause is one of version 0.1.
        """
        data: dict[str, Json] = {
            name: value
            for name, value in self.__dict__.items()
            if value is not (default := _NODE_DEFAULTS[name]) and value != default
        }
        if self.path_scores:
            data["path_scores"] = dict(self.path_scores)
        if self.reason:
            data["cause"] = self.cause
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> NodeRecord:
        """Read a record written by `to_json`. Raises `RecordError` on a wrong shape or value."""
        if not isinstance(data, Mapping) or not isinstance(data.get("id"), str):
            raise RecordError(f"not a node record: {str(data)[:80]!r}")
        if data.get("reason") and "cause" not in data:
            data = with_cause(data)
        return sparse_record(read_record(cls, data, f"node {data['id']}"), data)


def changed_record(record: NodeRecord, changes: dict[str, Any]) -> NodeRecord:
    """Return the record with other values: `NodeRecord.but`, of a dict."""
    changed = object.__new__(NodeRecord)
    object.__setattr__(changed, "__dict__", record.__dict__ | changes)
    return changed


def sparse_record(record: NodeRecord, given: Container[str] = ()) -> NodeRecord:
    """Return an equal record that holds only the fields `given`, and those without a default.

    The class has the defaults of the others. Of 26 fields a step needs half, and what
    `changed_record` makes of it is as small.
    """
    values = {n: v for n, v in record.__dict__.items() if n in given or n in _NEEDED}
    sparse = object.__new__(NodeRecord)
    object.__setattr__(sparse, "__dict__", values)
    return sparse


def with_cause(record: Mapping[str, Json]) -> dict[str, Json]:
    """Return a record of version 0.1, whose causes stood in its reason's words, with its cause."""
    reason, status = str(record["reason"]), record.get("status", "open")
    words = _CAUSES_IN_WORDS.get("failed" if status == "failed" else "", ())
    cause: Cause = next((c for start, c in words if reason.startswith(start)), "")
    if cause == "duplicate":
        return {**record, "cause": cause, "merged_into": reason.rpartition(" ")[2]}
    return {**record, "cause": cause}


NODE_FIELDS: tuple[str, ...] = tuple(entry.name for entry in fields(NodeRecord))
"""The names of a record's fields."""

node_values: Callable[[NodeRecord], tuple[Any, ...]] = attrgetter(*NODE_FIELDS)
"""Returns the values of a record's fields."""

_NODE_DEFAULTS: dict[str, Json] = {
    entry.name: {} if entry.name == "path_scores" else entry.default for entry in fields(NodeRecord)
}
_NEEDED = frozenset(entry.name for entry in fields(NodeRecord) if entry.default is MISSING)
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


def shown_answer(answer: str | None, *, unfinished: bool) -> str:
    """Return an answer as it is shown wherever one is: "none" if there is none.

    One that was read from an unfinished path begins with "[unfinished]", so that no shortening
    cuts the mark off.
    """
    return ("[unfinished] " if unfinished else "") + ("none" if answer is None else answer)


@_stored
@dataclass(frozen=True, slots=True)
class Candidate:
    """A path that may be the answer, with the scores of its steps."""

    node: NodeId
    steps: tuple[str, ...]
    step_scores: tuple[_Probability | None, ...]
    status: NodeStatus
    answer: str | None
    score: _Probability | None
    votes: _Amount = 0.0

    @property
    def said(self) -> str:
        """The answer as it is shown (`shown_answer`)."""
        return shown_answer(self.answer, unfinished=self.status != "finished")

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
        return read_record(cls, data, "not a candidate record")


@_stored
@dataclass(frozen=True, slots=True)
class SearchResult:
    """The outcome of a search.

    `ended_by` is the strategy's reason ("all paths ended"), or the budget that ran out
    ("budget: generated_tokens 512 of 500"). `fallback` is True when no path finished and the best
    truncated path was taken instead. `warning` says what a user has to know before trusting the
    answer, and what to do about it: that a limit cut the search, that no path finished and why,
    that most calls failed; "" if all went well. As text (`str`) it is what a user reads: the
    chosen path, with the warning where that is unfinished or nothing was found.
    """

    answer: str | None
    text: str
    score: _Probability | None
    node: NodeId | None
    ended_by: str
    fallback: _Flag
    candidates: tuple[Candidate, ...]
    usage: Usage
    warning: str = ""

    @property
    def said(self) -> str:
        """The answer as it is shown (`shown_answer`)."""
        return shown_answer(self.answer, unfinished=self.fallback and self.node is not None)

    def __str__(self) -> str:
        """Return the text of the chosen path, never passing an unfinished one off as an answer."""
        if not self.text:
            return f"No answer was found: {self.warning}."
        return f"{self.text}\n\n[Unfinished: {self.warning}.]" if self.fallback else self.text

    def to_json(self, *, candidates: bool = True) -> dict[str, Json]:
        """Return the result as plain JSON, with or without the candidates."""
        listed = {"candidates": [c.to_json() for c in self.candidates]} if candidates else {}
        return {
            "answer": self.answer,
            "text": self.text,
            "score": self.score,
            "node": self.node,
            "ended_by": self.ended_by,
            "fallback": self.fallback,
            **listed,
            "usage": self.usage.to_json(),
            "warning": self.warning,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> SearchResult:
        """Read a result written by `to_json`. Raises `RecordError` on a wrong shape."""
        whole = {"candidates": (), **data} if isinstance(data, Mapping) else data
        return read_record(cls, whole, "not a result record")
