"""The search tree: an append-only table of node records, merged by id.

Merging is a join: idempotent, commutative and associative, so records may arrive twice, late or in
any order and the tree is the same. Indices (children, open leaves, rounds, totals) are kept up to
date record by record; nothing a search asks for in a round costs more in a larger tree.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vprm_search import ids
from vprm_search.aggregate import counted_scores, path_score
from vprm_search.errors import RecordError
from vprm_search.types import COUNTED, NODE_STATUSES, Json, NodeId, NodeRecord, Problem, Usage

if TYPE_CHECKING:
    import networkx

FORMAT_VERSION = 1
_RANK = {status: rank for rank, status in enumerate(NODE_STATUSES)}


def join_records(a: NodeRecord, b: NodeRecord) -> NodeRecord:
    """Return the join of two records of one node: what is known in either is known in the result.

    A later status (open < finished < truncated < pruned < failed) wins over an earlier one, a
    score over no score; where two values contradict each other the larger one is taken, so that
    the order of arrival never matters.
    """
    if a == b:
        return a
    if (a.id, a.parent, a.index, a.text) != (b.id, b.parent, b.index, b.text):
        raise RecordError(f"two different nodes share the id {a.id}; the records are damaged")
    top = max((a, b), key=lambda r: (_RANK[r.status], r.reason, r.cause, r.merged_into or ""))
    scores = [r.score for r in (a, b) if r.score is not None]
    answers = [r.answer for r in (a, b) if r.answer is not None]
    paths = dict(a.path_scores)
    for name, value in b.path_scores.items():
        paths[name] = max(value, paths.get(name, value))
    return replace(
        a,
        status=top.status,
        reason=top.reason,
        cause=top.cause,
        merged_into=top.merged_into,
        blank=a.blank or b.blank,
        score=max(scores, default=None),
        score_reason="" if scores else max(a.score_reason, b.score_reason),
        path_scores=paths,
        answer=max(answers, default=None),
        seed=max(a.seed, b.seed),
        policy=max(a.policy, b.policy),
        role=max(a.role, b.role),
        round=max(a.round, b.round),
        **{name: max(getattr(a, name), getattr(b, name)) for name in COUNTED},
    )


class SearchTree:
    """All steps proposed in one search, as a tree of `NodeRecord`s."""

    def __init__(self, problem: Problem, run_seed: int = 0) -> None:
        self.problem = problem
        self.run_seed = run_seed
        self._totals = Usage()
        self._uncounted: list[tuple[NodeRecord, int]] = []
        self._rounds = 0
        self._records: dict[NodeId, NodeRecord] = {}
        self._children: dict[NodeId, dict[int, NodeId]] = {}
        self._by_round: dict[int, dict[NodeId, None]] = {}
        self._expanded: set[NodeId] = set()
        self._open_leaves: dict[NodeId, None] = {}
        self._ended: dict[NodeId, None] = {}
        self._unscored: dict[NodeId, None] = {}
        self._text_keys: dict[NodeId, bytes] = {}
        self._scored_texts: dict[bytes, NodeId] = {}
        self._new_scores: list[NodeId] = []
        root = ids.root_id(problem, run_seed)
        self.root_id = root
        self._put(NodeRecord(id=root, parent=None, index=0))

    # --- growing -------------------------------------------------------------------------------

    def merge(self, records: Iterable[NodeRecord]) -> list[NodeId]:
        """Join `records` into the table; return the ids whose record changed, in order.

        Raises `RecordError` if a record has another root or its id does not match its content.
        """
        changed = []
        for record in records:
            self._check_identity(record)
            known = self._records.get(record.id)
            joined = record if known is None else join_records(known, record)
            if joined is not known and joined != known:
                self._put(joined)
                changed.append(record.id)
        return changed

    def _check_identity(self, record: NodeRecord) -> None:
        if record.id in self._records:
            return  # compared field by field when joined
        if record.parent is None:
            raise RecordError(
                f"node {record.id} is the root of another search (this one's is {self.root_id})"
            )
        if record.id != ids.child_id(record.parent, record.index, record.text):
            raise RecordError(
                f"node {record.id}: its id does not match its parent, index and text; "
                "the record was damaged or edited"
            )

    def _put(self, record: NodeRecord) -> None:
        old = self._records.get(record.id)
        if old is not None:
            self._uncounted.append((old, -1))
            self._by_round[old.round].pop(record.id)  # the join may know a later round
        self._uncounted.append((record, 1))
        self._rounds = max(self._rounds, record.round)
        self._records[record.id] = record
        self._by_round.setdefault(record.round, {})[record.id] = None
        if old is None and record.parent is not None:
            self._children.setdefault(record.parent, {})[record.index] = record.id
            if record.role != "lookahead":
                self._expanded.add(record.parent)
                self._open_leaves.pop(record.parent, None)
        self._index(record)

    def _index(self, record: NodeRecord) -> None:
        node, scored = record.id, record.score is not None
        may_grow = record.status == "open" and record.role != "lookahead"
        _keep(self._open_leaves, node, may_grow and node not in self._expanded)
        _keep(self._ended, node, record.status in ("finished", "truncated"))
        waits = record.parent is not None and not scored and not record.score_reason
        _keep(self._unscored, node, waits and record.status != "failed")
        if scored and record.is_step:
            self._new_scores.append(node)

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

    @property
    def records(self) -> Mapping[NodeId, NodeRecord]:
        """All records by id, read-only."""
        return MappingProxyType(self._records)

    @property
    def totals(self) -> Usage:
        """What all records together have spent, without seconds."""
        if self._uncounted:
            sums = {entry.name: getattr(self._totals, entry.name) for entry in fields(Usage)}
            for record, sign in self._uncounted:
                if record.parent is not None:
                    sums["candidates"] += sign * bool(record.seed)
                    sums["scored_steps"] += sign * bool(record.scored_tokens)
                for name in COUNTED:
                    sums[name] += sign * getattr(record, name)
            self._totals = Usage(**{**sums, "rounds": self._rounds})
            self._uncounted.clear()
        return self._totals

    @property
    def rounds(self) -> int:
        """The number of the last round in which something was proposed (0: none yet)."""
        return self._rounds

    def children(self, node: NodeId) -> list[NodeRecord]:
        """Return the children of a node, by index."""
        by_index = self._children.get(node, {})
        return [self._records[by_index[index]] for index in sorted(by_index)]

    def child_count(self, node: NodeId) -> int:
        """Return how many children a node has, failed and pruned ones included."""
        return len(self._children.get(node, ()))

    def open_leaves(self) -> list[NodeRecord]:
        """Return the open nodes without children: what may be expanded next, by id.

        Lookahead steps neither count as children nor stand in the list.
        """
        return [self._records[node] for node in sorted(self._open_leaves)]

    def ended(self) -> list[NodeRecord]:
        """Return the finished and truncated nodes, by id."""
        return [self._records[node] for node in sorted(self._ended)]

    def finished(self) -> list[NodeRecord]:
        """Return the nodes at which the policy ended its answer itself, by id."""
        return [record for record in self.ended() if record.status == "finished"]

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
        return len(self.path(node))

    def steps(self, node: NodeId) -> tuple[str, ...]:
        """Return the texts of the path's steps; an end marker is not a step."""
        return tuple(record.text for record in self.path(node) if record.is_step)

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

    def scored_twin(self, node: NodeId) -> NodeRecord | None:
        """Return a scored node with the very same steps before and at it, or None.

        Samples often begin with equal steps; a twin's score is this node's score too.
        """
        for new in self._new_scores:  # not keyed on arrival: a parent may arrive later
            key = self._text_key(new)
            # the smallest id, not the first to arrive: twins may have been scored separately
            self._scored_texts[key] = min(new, self._scored_texts.get(key, new))
        self._new_scores.clear()
        twin = self._scored_texts.get(self._text_key(node))
        return None if twin is None else self._records[twin]

    def _text_key(self, node: NodeId) -> bytes:
        key = self._text_keys.get(node)
        if key is None:
            record = self[node]
            key = b"" if record.parent is None else self._extend_key(record.parent, record.text)
            self._text_keys[node] = key
        return key

    def _extend_key(self, parent: NodeId, text: str) -> bytes:
        return ids.digest(self._text_key(parent), text)[:16]

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
            if ended and record.role != "lookahead":
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


def _keep(index: dict[NodeId, None], node: NodeId, present: bool) -> None:
    if present:
        index[node] = None
    else:
        index.pop(node, None)
