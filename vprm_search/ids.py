"""Content-derived ids and seeds: the same search always makes the same names and draws."""

from __future__ import annotations

import hashlib
import struct
from functools import lru_cache

from vprm_search.types import NodeId, Problem

_ID_BYTES = 12  # 96 bits: collision odds below 1e-18 for a tree of 20,000 nodes
_SEED_MASK = (1 << 63) - 1
_length = struct.Struct(">Q").pack


def digest(*parts: str | bytes | int) -> bytes:
    """Return the SHA-256 of `parts`, each framed by its type and length.

    The framing makes the encoding injective: moving characters from one part to the next, or an
    int in place of its decimal text, changes the digest.
    """
    return hashlib.sha256(b"".join(map(_framed, parts))).digest()


def _framed(part: str | bytes | int) -> bytes:
    if isinstance(part, str):
        kind, data = b"s", part.encode("utf-8")
    elif isinstance(part, bytes):
        kind, data = b"b", part
    else:
        kind, data = b"i", str(part).encode()
    return kind + _length(len(data)) + data


@lru_cache(maxsize=4096)  # equal for all children of a node, and for all nodes
def _begun(kind: str, parent: NodeId) -> bytes:
    return _framed(kind) + _framed(parent)


_numbered = lru_cache(maxsize=4096, typed=True)(_framed)  # True equals 1 and is framed otherwise


def root_id(problem: Problem, run_seed: int) -> NodeId:
    """Return the id of the root of a search over `problem` with the given run seed."""
    parts = (problem.system, problem.question, *problem.images)
    if problem.context:
        parts += ("in", problem.context)
    if problem.choices:
        parts += ("choices", *problem.choices)
    return digest("root", run_seed, *parts)[:_ID_BYTES].hex()


def child_id(parent: NodeId, index: int, text: str) -> NodeId:
    """Return the id of the child `index` of `parent` whose step is `text` (normalised)."""
    framed = _begun("node", parent) + _numbered(index) + _framed(text)
    return hashlib.sha256(framed).digest()[:_ID_BYTES].hex()


@lru_cache(maxsize=1024)  # asked for by the request and by the record of a child
def child_seed(parent: NodeId, index: int) -> int:
    """Return the 63-bit sampling seed of child `index` of `parent`.

    It depends on the root id, hence on the run seed, and on nothing drawn at run time.
    """
    framed = _begun("seed", parent) + _numbered(index)
    return int.from_bytes(hashlib.sha256(framed).digest()[:8], "big") & _SEED_MASK
