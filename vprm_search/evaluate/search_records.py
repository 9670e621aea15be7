"""What is kept of searches: a line for each problem, strategy and size, in one file of a run.

A line is appended as soon as its search has ended: what each selector chose and whether it is
right, what the search spent, which calls failed, and the whole tree. So a run that is killed loses
the searches under way and nothing else, and another selector can be asked later without any model.
Where several lines tell of one search the last one counts.

Cells, which version 0.1 wrote (`evaluate.cells`), are read as records without trees.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NotRequired

from pydantic import ConfigDict, TypeAdapter, with_config
from typing_extensions import TypedDict

from vprm_search import ids
from vprm_search.answers import choices_of
from vprm_search.budget import Prices
from vprm_search.compare.entrants import choice_of
from vprm_search.compare.worlds import is_right
from vprm_search.errors import RecordError
from vprm_search.evaluate.cells import CELL_COUNTS, read_cell
from vprm_search.evaluate.folder import SEARCHES, RunFolder, key_of
from vprm_search.evaluate.lines import Count, Line, Lines
from vprm_search.evaluate.side_by_side import Done
from vprm_search.scoring.reasons import with_remedy
from vprm_search.search.outcome import kind_of
from vprm_search.tree import SearchTree
from vprm_search.types import NodeId, NodeRecord, Problem, Usage

CUT = "budget: generated_tokens"
"""How the reason begins for which a search ends that has used up its tokens."""

MAX_FAILED = 0.05
"""The share of failed calls above which a cell is no result."""

VERSION: Final = 1
_OLD_FOLDER = "searches"
FILE_NAME = "records.jsonl"
_ERRORS_KEPT = 5


@dataclass(frozen=True, slots=True)
class Failures:
    """The failed calls of one search, or of many.

    Of the `candidates` that were asked for, `lost` have no reply, since their call failed; a reply
    that is no step is none of these. Of the `steps`, `unscored` have no score in the end. `errors`
    counts what was said, with what to do about it, the most frequent errors only. `share` is the
    share of the calls that failed or of the steps without a score, the larger; of many searches
    their mean, since accuracy is a mean over searches, too.
    """

    candidates: int = 0
    lost: int = 0
    steps: int = 0
    unscored: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    share: float = 0.0

    @classmethod
    def of(cls, tree: SearchTree) -> Failures:
        """Return what failed in a search that has ended."""
        candidates = [r for r in tree if r.seed and r.cause != "budget"]
        lost = [r for r in candidates if r.status == "failed" and r.cause == "failed"]
        steps = [r for r in tree if r.parent is not None and r.is_step and r.status != "failed"]
        unscored = [r for r in steps if r.score is None]
        said = Counter([r.reason for r in lost] + [with_remedy(r.score_reason) for r in unscored])
        share = max(len(lost) / max(1, len(candidates)), len(unscored) / max(1, len(steps)))
        return cls(len(candidates), len(lost), len(steps), len(unscored), _by_kind(said), share)

    @classmethod
    def sum(cls, parts: Iterable[Failures]) -> Failures:
        """Return the failures of several searches together."""
        known = list(parts)
        errors = Counter[str]()
        for part in known:
            errors.update(part.errors)
        return cls(
            candidates=sum(part.candidates for part in known),
            lost=sum(part.lost for part in known),
            steps=sum(part.steps for part in known),
            unscored=sum(part.unscored for part in known),
            errors=_by_kind(errors),
            share=sum(part.share for part in known) / max(1, len(known)),
        )

    @property
    def most_frequent(self) -> str:
        """What was said most often, "" if no call failed."""
        return max(self.errors, key=lambda text: self.errors[text], default="")

    def __str__(self) -> str:
        """Say how many calls failed."""
        said = []
        if self.lost:
            said.append(f"{self.lost} of {self.candidates} calls to the policy failed")
        if self.unscored:
            said.append(f"{self.unscored} of {self.steps} steps got no score")
        return " and ".join(said) or "no call failed"


def _by_kind(said: Mapping[str, int]) -> dict[str, int]:
    """Return the most frequent errors; those that differ in numbers only count as one."""
    examples: dict[str, str] = {}
    counts = Counter[str]()
    for text, count in sorted(said.items()):
        examples.setdefault(kind_of(text), text)
        counts[kind_of(text)] += count
    return {examples[kind]: count for kind, count in counts.most_common(_ERRORS_KEPT)}


@dataclass(frozen=True, slots=True)
class Choice:
    """What a selector chose: the node, its answer and path score, and whether it is right."""

    right: bool
    node: NodeId | None = None
    answer: str | None = None
    score: float | None = None


@with_config(ConfigDict(extra="ignore"))
@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One search: problem `problem` of its world, by strategy `name` at `size`.

    `root` names question, pictures and seed (`ids.root_id`); "" in a record read from a cell.
    `budget` is the tokens the search might generate, `finished` the number of its finished paths.
    `seconds` and `cpu_seconds` are the search's share of the time of all that advanced together.
    """

    problem: int
    name: str
    size: int
    strategy: Mapping[str, Any]
    root: str = ""
    expected: str = ""
    budget: int
    ended_by: str
    finished: int
    seconds: float
    cpu_seconds: float = 0.0
    usage: Usage
    failures: Failures = Failures()
    choices: Mapping[str, Choice]

    @property
    def key(self) -> Key:
        """Which search this is."""
        return self.problem, self.name, self.size

    def done(self, prices: Prices) -> Done:
        """Return what those who show progress are told."""
        return Done(
            1,
            int(bool(self.failures.share)),
            generated_tokens=self.usage.generated_tokens,
            scored_tokens=self.usage.scored_tokens,
            cost=prices.cost_of(self.usage),
        )

    @property
    def cost(self) -> dict[str, float]:
        """What the tables show of the cost, by name."""
        return {
            "budget": self.budget,
            "generated_tokens": self.usage.generated_tokens,
            "scored_tokens": self.usage.scored_tokens,
            "computed_tokens": self.usage.tokens_computed,
            "rounds": self.usage.rounds,
            "cut": self.ended_by.startswith(CUT),
            "finished": self.finished,
            "unfinished": not self.finished,
            "seconds": self.seconds,
        }


Key = tuple[int, str, int]
"""Problem, strategy, size."""

_READER = TypeAdapter(Record)


@with_config(ConfigDict(extra="allow"))
class _Shape(TypedDict):
    version: Literal[1]
    run: NotRequired[str]
    left: NotRequired[Count]


_SHAPE = TypeAdapter(_Shape)


def _line_of(text: bytes) -> Line:
    line: Line = dict(_SHAPE.validate_json(text))
    record = _READER.validate_python(line)
    return {name: line[name] for name in ("run", "left") if name in line} | {"record": record}


def chosen(tree: SearchTree, choice: str, expected: str) -> Choice:
    """Return what a selector ("NAME:AGGREGATION") chooses from a tree; asks no model."""
    selector = choice_of(choice)
    node = selector.select(tree, tree.finished()).node
    if node is None:
        return Choice(right=False)
    answer = tree[node].answer
    score = tree.path_score(node, selector.aggregate)
    return Choice(is_right(expected, answer, choices_of(tree.problem)), node, answer, score)


class RecordFile:
    """The records of a folder: those of its cells, then those of its file.

    Trees stay on the disk until they are asked for. Several processes may append to one file.

    Args:
        out: the folder.
        told: is told of every record that is appended.

    Raises:
        RecordError: a damaged line or cell, or a line of another run.
    """

    def __init__(self, out: Path, told: Callable[[Record], None] = lambda _: None) -> None:
        self.path, self._told = out / FILE_NAME, told
        older = out / _OLD_FOLDER / FILE_NAME
        if older.exists() and not self.path.exists():
            older.rename(self.path)
        self._records: dict[Key, Record] = {r.key: r for r in _of_cells(out)}
        self._places: dict[Key, int] = {}
        run = key_of(RunFolder(out).facts(SEARCHES) or {})
        self._lines = Lines(self.path, _line_of, run, self._note)

    def __iter__(self) -> Iterator[Record]:
        """Iterate over the records, in no particular order."""
        return iter(self._records.values())

    def get(self, problem: int, name: str, size: int) -> Record | None:
        """Return the record of a search, or None."""
        return self._records.get((problem, name, size))

    def failures(self, name: str, size: int, problems: Container[int] | None = None) -> Failures:
        """Return what failed in a cell, as far as it is recorded; or on these problems of it."""
        return Failures.sum(
            r.failures
            for r in self
            if (r.name, r.size) == (name, size) and (problems is None or r.problem in problems)
        )

    def append(self, record: Record, tree: SearchTree) -> None:
        """Write a record behind all others. Raises `OSError` on a full disk."""
        line = {"version": VERSION, **asdict(record), "tree": pack(tree)}
        self._lines.append([line], synced=False)
        self._told(record)

    def tree(self, record: Record) -> SearchTree | None:
        """Return the tree of a record, None if it was read from a cell."""
        place = self._places.get(record.key)
        return None if place is None else unpack(self._lines.at([place])[0]["tree"])

    def choice(self, record: Record, choice: str) -> Choice | None:
        """Return what a selector chose, or chooses now from the tree; None without a tree."""
        known = record.choices.get(choice)
        if known is None:
            tree = self.tree(record)
            known = None if tree is None else chosen(tree, choice, record.expected)
        return known

    def _note(self, line: Line, place: int) -> None:
        record = line["record"] if "record" in line else _READER.validate_python(line)
        self._records[record.key] = record
        self._places[record.key] = place


def _of_cells(out: Path) -> Iterator[Record]:
    """Yield the records that the cells of version 0.2 stand for."""
    for path in sorted((out / "cells").glob("*-*/*.json")):
        row = read_cell(path)
        start = int(path.parent.name.split("-")[0])
        count = len(row["generated_tokens"])
        for place in range(count):
            at = {name: int(row[name][place]) for name in CELL_COUNTS}
            yield Record(
                problem=start + place,
                name=row["name"],
                size=row["size"],
                strategy=row["strategy"],
                budget=at["budget"],
                ended_by=CUT if at["cut"] else "",
                finished=at["finished"],
                seconds=row["seconds"] / count,
                cpu_seconds=row.get("cpu_seconds", 0.0) / count,
                usage=Usage(
                    generated_tokens=at["generated_tokens"],
                    scored_tokens=at["scored_tokens"],
                    tokens_computed=at["computed_tokens"],
                    rounds=at["rounds"],
                ),
                choices={name: Choice(bool(v[place])) for name, v in row["right"].items()},
            )


# --- trees in few bytes --------------------------------------------------------------------------


def pack(tree: SearchTree) -> str:
    """Return a tree as text of few bytes: base64 of its JSON, compressed (zlib).

    Ids and seeds, which follow from the texts, and path scores, which follow from the scores, are
    left out; parents come before their children, and are named by their places.
    """
    order = sorted(tree, key=lambda record: (tree.depth(record.id), record.id))
    places = {record.id: place for place, record in enumerate(order)}
    nodes = []
    for record in order:
        data = record.to_json()
        for name in ("id", "path_scores"):
            data.pop(name, None)
        for name in ("parent", "merged_into"):
            if data.get(name) in places:
                data[name] = places[data[name]]
        if record.parent and record.seed == ids.child_seed(record.parent, record.index):
            data["seed"] = True
        nodes.append(data)
    whole = {"problem": tree.problem.to_json(), "run_seed": tree.run_seed, "nodes": nodes}
    text = json.dumps(whole, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode())).decode()


def unpack(text: str) -> SearchTree:
    """Return the tree that `pack` made a text of. Raises `RecordError` on damage."""
    try:
        data = json.loads(zlib.decompress(base64.b64decode(text, validate=True)))
        tree = SearchTree(Problem.from_json(data["problem"]), data["run_seed"])
        root, *nodes = data["nodes"]
        known: list[NodeId] = [tree.root_id]
        for node in nodes:
            parent, index = known[node["parent"]], node["index"]
            known.append(ids.child_id(parent, index, node.get("text", "")))
            node |= {"id": known[-1], "parent": parent}
            if node.get("seed") is True:
                node["seed"] = ids.child_seed(parent, index)
        for node in nodes:
            if isinstance(node.get("merged_into"), int):
                node["merged_into"] = known[node["merged_into"]]
    except (ValueError, KeyError, TypeError, IndexError, zlib.error) as error:
        raise RecordError(f"not a packed tree ({error!r})") from error
    tree.merge(NodeRecord.from_json(n) for n in ({**root, "id": tree.root_id}, *nodes))
    tree.check()
    return tree
