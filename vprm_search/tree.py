"""The search tree: an append-only table of node records, merged by id.

Merging is a join: idempotent, commutative and associative, so records may arrive twice, late or in
any order and the tree is the same. Indices (children, open leaves, rounds, totals) are kept up to
date record by record; nothing a search asks for in a round costs more in a larger tree.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import fields
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from vprm_search import ids
from vprm_search.aggregate import ScoresAbove, aggregated, counted_scores, path_score
from vprm_search.errors import RecordError
from vprm_search.types import (
    NODE_FIELDS,
    NODE_STATUSES,
    Json,
    NodeId,
    NodeRecord,
    Problem,
    Usage,
    changed_record,
    node_values,
)

if TYPE_CHECKING:
    import networkx

T = TypeVar("T")

FORMAT_VERSION = 1
_KEPT_PATHS = 512
_RANK = {status: rank for rank, status in enumerate(NODE_STATUSES)}


def join_records(a: NodeRecord, b: NodeRecord) -> NodeRecord:
    """Return the join of two records of one node: what is known in either is known in the result.

    A later status (open < finished < truncated < pruned < failed) wins over an earlier one, a
    score over no score; where two values contradict each other the larger one is taken, so that
    the order of arrival never matters.
    """
    differ = {
        name: (old, new)
        for name, old, new in zip(NODE_FIELDS, node_values(a), node_values(b), strict=True)
        if old != new
    }
    if not differ:
        return a
    if not differ.keys().isdisjoint(("id", "parent", "index", "text")):
        raise RecordError(f"two different nodes share the id {a.id}; the records are damaged")
    top = max((a, b), key=lambda r: (_RANK[r.status], r.reason, r.cause, r.merged_into or ""))
    joined: dict[str, Any] = {}
    for name, (old, new) in differ.items():
        if name in ("status", "reason", "cause", "merged_into"):
            joined[name] = getattr(top, name)
        elif name == "path_scores":
            joined[name] = {k: max(old.get(k, -1.0), new.get(k, -1.0)) for k in {**old, **new}}
        else:  # numbers, flags and words; what is not known is less than anything
            joined[name] = new if old is None else old if new is None else max(old, new)
    return a.but(**joined)


class SearchTree:
    """All steps proposed in one search, as a tree of `NodeRecord`s."""

    def __init__(self, problem: Problem, run_seed: int = 0) -> None:
        self.problem = problem
        self.run_seed = run_seed
        self._sums: dict[str, Any] = Usage().counts()
        self._candidates = 0
        self._scored_steps = 0
        self._rounds = 0
        self._records: dict[NodeId, NodeRecord] = {}
        self._children: dict[NodeId, dict[int, NodeId]] = defaultdict(dict)
        self._by_round: dict[int, dict[NodeId, None]] = defaultdict(dict)
        self._expanded: set[NodeId] = set()
        self._open_leaves: dict[NodeId, None] = {}
        self._ended: dict[NodeId, None] = {}
        self._finished: dict[NodeId, int] = {}  # with the depth, -1 until it is counted
        self._finished_depths: Counter[int] = Counter()
        self._new_finished: list[NodeId] = []
        self._unscored: dict[NodeId, None] = {}
        self._depths: dict[NodeId, int] = {}
        self._steps: dict[NodeId, tuple[str, ...]] = {}
        self._counted: dict[NodeId, tuple[dict[str, float], ScoresAbove]] = {}
        self._text_keys: dict[NodeId, int] = {}
        self._texts: dict[tuple[int, str], int] = {}
        self._scored_texts: dict[int, NodeId] = {}
        self._new_scores: list[NodeId] = []
        root = ids.root_id(problem, run_seed)
        self.root_id = root
        self._put(NodeRecord(id=root, parent=None, index=0))

    # --- growing -------------------------------------------------------------------------------

    def merge(self, records: Iterable[NodeRecord], *, trusted: bool = False) -> list[NodeId]:
        """Join `records` into the table; return the ids whose record changed, in order.

        `trusted` says that their ids were just made of their contents.

        Raises `RecordError` if a record has another root or its id does not match its content.
        """
        changed = []
        for record in records:
            known = self._records.get(record.id)
            if known is None:
                if not trusted:
                    self._check_identity(record)
                self._put(record)
            else:
                joined = join_records(known, record)
                if joined is known or joined == known:
                    continue
                self._put(joined, known)
            changed.append(record.id)
        return changed

    def amend(self, node: NodeId, **known: Any) -> None:
        """Write what became known of a node into its record: a join with nothing to compare.

        `known` must not fall behind what the record says: a score where there was none, a count
        that grew, an end of what was open other than a failure; never another text or round.
        """
        old = self._records[node]
        record = self._records[node] = changed_record(old, known)
        sums = self._sums
        for name, value in known.items():
            if name in sums:
                sums[name] += value - getattr(old, name)
        if record.parent is not None and ("scored_tokens" in known or "seed" in known):
            self._candidates += bool(record.seed) - bool(old.seed)
            self._scored_steps += bool(record.scored_tokens) - bool(old.scored_tokens)
        if "status" in known:
            self._index_status(record)
        if "score" in known or "score_reason" in known:
            self._index_score(record)

    def _check_identity(self, record: NodeRecord) -> None:
        if record.parent is None:
            raise RecordError(
                f"node {record.id} is the root of another search (this one's is {self.root_id})"
            )
        if record.id != ids.child_id(record.parent, record.index, record.text):
            raise RecordError(
                f"node {record.id}: its id does not match its parent, index and text; "
                "the record was damaged or edited"
            )

    def _put(self, record: NodeRecord, old: NodeRecord | None = None) -> None:
        self._records[record.id] = record
        self._count(record, 1)
        if old is None:
            self._place(record)
        else:
            self._count(old, -1)
            self._move(record, old)
        self._index(record)

    def _place(self, record: NodeRecord) -> None:
        """Index what never changes of a new record."""
        node, parent, number = record.id, record.parent, record.round
        self._by_round[number][node] = None
        if number > self._rounds:
            self._rounds = number
        if parent is None:
            self._depths[node] = self._text_keys[node] = 0
            return
        self._children[parent][record.index] = node
        if not record.role or not record.is_aside:
            self._expanded.add(parent)
            self._open_leaves.pop(parent, None)
        depth, key = self._depths.get(parent), self._text_keys.get(parent)
        if depth is not None and key is not None:  # else the parent arrives later
            self._depths[node] = depth + 1
            text = (key, record.text)
            self._text_keys[node] = self._texts.setdefault(text, len(self._texts) + 1)

    def _move(self, record: NodeRecord, old: NodeRecord) -> None:
        """Bring up to date what a changed record makes stale."""
        if record.round != old.round:  # the join may know a later round
            self._by_round[old.round].pop(record.id)
            self._by_round[record.round][record.id] = None
            self._rounds = max(self._rounds, record.round)
        if record.blank != old.blank or (old.score is not None and record.score != old.score):
            self._steps.clear()
            self._counted.clear()

    def _count(self, record: NodeRecord, sign: int) -> None:
        sums = self._sums
        for name, value in record.__dict__.items():
            if name in sums:
                sums[name] += sign * value
        if record.parent is not None:
            self._candidates += sign * bool(record.seed)
            self._scored_steps += sign * bool(record.scored_tokens)

    def _index(self, record: NodeRecord) -> None:
        self._index_status(record)
        self._index_score(record)

    def _index_status(self, record: NodeRecord) -> None:
        node, status = record.id, record.status
        aside = record.role and record.is_aside
        if status == "open" and not aside and node not in self._expanded:
            self._open_leaves[node] = None
        else:
            self._open_leaves.pop(node, None)
        if status == "finished" or status == "truncated":
            self._ended[node] = None
        else:
            self._ended.pop(node, None)
        if status == "finished":
            if node not in self._finished:
                self._finished[node] = -1
                self._new_finished.append(node)
        elif node in self._finished:
            self._finished_depths[self._finished.pop(node)] -= 1

    def _index_score(self, record: NodeRecord) -> None:
        node = record.id
        if record.score is not None or record.score_reason:
            self._unscored.pop(node, None)
            if record.score is not None and (record.text or record.blank):
                self._new_scores.append(node)
        elif record.parent is not None and record.status != "failed":
            self._unscored[node] = None
        else:
            self._unscored.pop(node, None)

    # --- reading -------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return the number of nodes, the root included."""
        return len(self._records)

    def __contains__(self, node: object) -> bool:
        """Return whether a node with this id is in the tree."""
        return node in self._records

    def __getitem__(self, node: NodeId) -> NodeRecord:
        """Return the record of a node. Raises `RecordError` if there is none."""
        try:
            return self._records[node]
        except KeyError:
            raise RecordError(f"no node {node!r} in the tree of root {self.root_id}") from None

    def __iter__(self) -> Iterator[NodeRecord]:
        """Iterate over all records, in no particular order."""
        return iter(self._records.values())

    def arrived_since(self, number: int) -> list[NodeRecord]:
        """Return the records after the first `number`, in the order in which they arrived."""
        new = islice(reversed(self._records.values()), len(self._records) - number)
        return list(new)[::-1]

    @property
    def records(self) -> Mapping[NodeId, NodeRecord]:
        """All records by id, read-only."""
        return MappingProxyType(self._records)

    @property
    def totals(self) -> Usage:
        """What all records together have spent, without seconds."""
        return Usage(
            **self._sums,
            candidates=self._candidates,
            scored_steps=self._scored_steps,
            rounds=self._rounds,
        )

    @property
    def rounds(self) -> int:
        """The number of the last round in which something was proposed (0: none yet)."""
        return self._rounds

    def children(self, node: NodeId) -> list[NodeRecord]:
        """Return the children of a node, by index."""
        by_index, records = self._children.get(node), self._records
        return [records[by_index[index]] for index in sorted(by_index)] if by_index else []

    def child_count(self, node: NodeId) -> int:
        """Return how many children a node has, failed and pruned ones included."""
        return len(self._children.get(node, ()))

    def open_leaves(self) -> list[NodeRecord]:
        """Return the open nodes without children: what may be expanded next, by id.

        Lookaheads and completions neither count as children nor stand in the list.
        """
        return [self._records[node] for node in sorted(self._open_leaves)]

    def ended(self) -> list[NodeRecord]:
        """Return the finished and truncated nodes, by id."""
        self._ended = dict.fromkeys(sorted(self._ended))  # the next time, few are out of order
        return [self._records[node] for node in self._ended]

    def finished(self) -> list[NodeRecord]:
        """Return the nodes at which the policy ended its answer itself, by id."""
        return [record for record in self.ended() if record.status == "finished"]

    def finished_depths(self) -> dict[int, int]:
        """Return how many finished nodes there are at each depth at which there are any."""
        for node in self._new_finished:  # not counted on arrival: a parent may arrive later
            if self._finished.get(node) == -1:
                self._finished[node] = self.depth(node)
                self._finished_depths[self._finished[node]] += 1
        self._new_finished.clear()
        return {depth: count for depth, count in self._finished_depths.items() if count > 0}

    def unscored(self) -> list[NodeRecord]:
        """Return the nodes that wait for a score, parents before children."""
        waiting = [self._records[node] for node in self._unscored]
        return sorted(waiting, key=lambda r: (r.round, self.depth(r.id), r.parent or "", r.index))

    def round_nodes(self, number: int) -> list[NodeRecord]:
        """Return the nodes proposed in a round, by id."""
        return [self._records[node] for node in sorted(self._by_round.get(number, ()))]

    def path(self, node: NodeId) -> list[NodeRecord]:
        """Return the records from the first step to `node`; empty for the root."""
        path = []
        record = self[node]
        while record.parent is not None:
            path.append(record)
            record = self[record.parent]
        return path[::-1]

    def depth(self, node: NodeId) -> int:
        """Return the number of steps from the root to `node`, end markers included."""
        known = self._depths.get(node)
        if known is None:
            below = self._climb(node, self._depths)
            top = below[-1].parent
            known = -1 if top is None else self._depths[top]
            for record in reversed(below):
                known += 1
                self._depths[record.id] = known
        return known

    def _climb(self, node: NodeId, known: Container[NodeId]) -> list[NodeRecord]:
        """Return the records from `node` upwards to the first below a known one, or the root."""
        below = []
        record = self[node]
        while record.id not in known:
            below.append(record)
            if record.parent is None:
                break
            record = self[record.parent]
        return below

    def steps(self, node: NodeId) -> tuple[str, ...]:
        """Return the texts of the path's steps; an end marker is not a step."""
        record = self[node]
        if record.parent is None:
            return ()
        before = self._steps.get(record.parent)
        if before is None:
            below = self._climb(record.parent, self._steps)
            top = below[-1].parent
            new = (r.text for r in reversed(below) if r.is_step)
            before = (*(() if top is None else self._steps[top]), *new)
            _remember(self._steps, record.parent, before)
        return (*before, record.text) if record.text or record.blank else before

    def step_scores(self, node: NodeId) -> tuple[float | None, ...]:
        """Return the scores of the path's steps, as long as `steps(node)`."""
        return tuple(record.score for record in self.path(node) if record.is_step)

    def path_score(self, node: NodeId, aggregate: str) -> float | None:
        """Return the aggregated score of the path; None if a step has no score.

        A step repeated word for word counts once (`aggregate.counted_scores`).
        """
        stored = self[node].path_scores.get(aggregate)
        return stored if stored is not None else path_score(aggregate, self.counted_scores(node))

    def counted_scores(self, node: NodeId) -> tuple[float | None, ...]:
        """Return the step scores that make the path score: each distinct step's, once."""
        return counted_scores(self.steps(node), self.step_scores(node))

    def path_scores(self, node: NodeId, score: float, names: Iterable[str]) -> dict[str, float]:
        """Return the path scores that follow from a score of the node; none if a step has none.

        What the steps above contribute is known from their siblings, so the depth costs little.
        """
        record = self[node]
        if record.parent is None:
            return {}
        known = self._scores_by_text(record.parent)
        if known is None:
            return {}
        above, scores_above = known
        if record.is_step and record.text not in above:
            return {name: scores_above.then(name, score) for name in names}
        if record.is_step:
            above = {**above, record.text: min(above[record.text], score)}
        scores = list(above.values())
        return {name: aggregated(name, scores) for name in names} if scores else {}

    def _scores_by_text(self, node: NodeId) -> tuple[dict[str, float], ScoresAbove] | None:
        """Return what `counted_scores` counts of a path, by text; None if a step has no score."""
        known = self._counted.get(node)
        if known is None:
            below = self._climb(node, self._counted)
            top = below[-1].parent
            found = {} if top is None else dict(self._counted[top][0])
            for record in reversed(below):
                if record.is_step:
                    if record.score is None:
                        return None
                    found[record.text] = min(record.score, found.get(record.text, record.score))
            known = found, ScoresAbove(list(found.values()))
            _remember(self._counted, node, known)
        return known

    def scored_twin(self, node: NodeId) -> NodeRecord | None:
        """Return a scored node with the very same steps before and at it, or None.

        Samples often begin with equal steps; a twin's score is this node's score too.
        """
        if self._new_scores:
            for new in self._new_scores:  # not keyed on arrival: a parent may arrive later
                key = self.text_key(new)
                # the smallest id, not the first to arrive: twins may have been scored separately
                twin = self._scored_texts.get(key)
                if twin is None or new < twin:
                    self._scored_texts[key] = new
            self._new_scores.clear()
        twin = self._scored_texts.get(self.text_key(node))
        return None if twin is None else self._records[twin]

    def text_key(self, node: NodeId) -> int:
        """Return a number that the nodes of this object with equal texts on their paths share."""
        key = self._text_keys.get(node)
        if key is None:
            below = self._climb(node, self._text_keys)
            top = below[-1].parent
            key = 0 if top is None else self._text_keys[top]
            for record in reversed(below):
                if record.parent is not None:
                    key = self._texts.setdefault((key, record.text), len(self._texts) + 1)
                self._text_keys[record.id] = key
        return key

    # --- whole trees ---------------------------------------------------------------------------

    def check(self) -> None:
        """Check the tree's invariants. Raises `RecordError` naming the first broken one.

        Every parent is there and may have children, no two children share an index, and the root
        is unique (ids were checked against their content when they were merged).
        """
        for record in self._records.values():
            if record.parent is None:
                continue
            parent = self._records.get(record.parent)
            if parent is None:
                raise RecordError(f"node {record.id}: its parent {record.parent} is missing")
            ended = parent.status in ("finished", "truncated", "failed")
            if ended and not record.is_aside:
                raise RecordError(f"node {record.id}: its parent is {parent.status}")
            if self._children[record.parent][record.index] != record.id:
                raise RecordError(
                    f"node {record.parent}: two different children at index {record.index}"
                )

    def to_json(self) -> dict[str, Json]:
        """Return the whole tree as plain JSON, nodes sorted by id."""
        return {
            "version": FORMAT_VERSION,
            "problem": self.problem.to_json(),
            "run_seed": self.run_seed,
            "nodes": [self._records[node].to_json() for node in sorted(self._records)],
        }

    def dumps(self) -> str:
        """Return the canonical JSON text: equal trees give equal bytes."""
        return json.dumps(
            self.to_json(),
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
            allow_nan=False,
        )

    def digest(self) -> str:
        """Return "sha256-<64 hex>" of the canonical JSON text: equal trees have equal digests."""
        return f"sha256-{hashlib.sha256(self.dumps().encode()).hexdigest()}"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SearchTree:
        """Read a tree written by `to_json`. Raises `RecordError` on damage."""
        if data.get("version") != FORMAT_VERSION:
            raise RecordError(
                f"tree format {data.get('version')!r} is not known (expected {FORMAT_VERSION})"
            )
        problem, run_seed, nodes = (data.get(key) for key in ("problem", "run_seed", "nodes"))
        if type(run_seed) is not int or not isinstance(nodes, list):
            raise RecordError("not a tree: expected 'problem', 'run_seed' (int), 'nodes' (list)")
        tree = cls(Problem.from_json(problem or {}), run_seed)
        tree.merge(NodeRecord.from_json(record) for record in nodes)
        tree.check()
        return tree

    @classmethod
    def loads(cls, text: str) -> SearchTree:
        """Read a tree written by `dumps`. Raises `RecordError` on damage."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise RecordError(f"not a tree: {error}") from error
        if not isinstance(data, dict):
            raise RecordError(f"not a tree: expected a JSON object, got {type(data).__name__}")
        return cls.from_json(data)

    def to_networkx(self) -> networkx.DiGraph[NodeId]:
        """Return the tree as a directed graph; node attributes are the record's fields."""
        import networkx

        graph: networkx.DiGraph[NodeId] = networkx.DiGraph()
        for record in sorted(self._records.values(), key=lambda r: r.id):
            graph.add_node(record.id, **{e.name: getattr(record, e.name) for e in fields(record)})
        graph.add_edges_from(
            (record.parent, record.id) for record in self._records.values() if record.parent
        )
        return graph


def _remember(cache: dict[NodeId, T], node: NodeId, value: T) -> None:
    """Keep what was made of a path, of at most 512 paths: each is as large as it is deep."""
    if len(cache) >= _KEPT_PATHS:
        cache.clear()
    cache[node] = value
