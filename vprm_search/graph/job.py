"""One search among many that run together."""

from __future__ import annotations

from dataclasses import dataclass

from vprm_search.tree import SearchTree
from vprm_search.types import ImageData


@dataclass(frozen=True, slots=True)
class Job:
    """One search in a batch: its tree, its problem's images, and the seconds spent so far."""

    tree: SearchTree
    images: tuple[ImageData, ...] = ()
    seconds: float = 0.0
