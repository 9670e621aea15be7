"""Forward passes of the language model over packed trees of conversations that fit into memory."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vprm_search.scoring.engine.attention import (
    AttentionName,
    AttentionPlan,
    DensePlanner,
    choose_attention,
)
from vprm_search.scoring.engine.prefix_cache import CachedRows, PrefixCache
from vprm_search.scoring.engine.token_tree import Rows, TokenPath, TokenTree, build_tree, tree_sizes

if TYPE_CHECKING:
    from vprm_search.scoring.engine.checkpoint import PrmCheckpoint


@dataclass(slots=True)
class ScoringMeter:
    """Running totals of one scorer.

    `tokens_requested` is what one forward pass per path would compute, `tokens_computed` what was
    computed; `seconds` is wall time inside the scorer.
    """

    requests: int = 0
    steps: int = 0
    forward_passes: int = 0
    tokens_requested: int = 0
    tokens_computed: int = 0
    images_encoded: int = 0
    tiles_encoded: int = 0
    out_of_memory: int = 0
    seconds: float = 0.0

    def to_json(self) -> dict[str, float]:
        """Return the totals as plain JSON."""
        return asdict(self)


T = TypeVar("T")
_MEMORY_WORDS = (
    "out of memory",  # "CUDA error: out of memory" and its kin
    "alloc_failed",  # CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_ALLOC_FAILED
    "defaultcpuallocator",
    "can't allocate memory",
)
_log = logging.getLogger(__name__)


class FeaturesMissingError(Exception):
    """The images of a job are to be computed, but the job holds no features: encode them first."""


@dataclass(frozen=True, slots=True)
class PathJob:
    """One path to score: its tokens, where to read, and the embeddings of its images.

    `features` is `[image tokens, hidden]`, all images of the problem one after another, or None
    without images and where the images are in the prefix cache; `image_spans` says where they go.
    `positions` are position ids `[axes, tokens]` that depend on the tokens before each only; None
    means 0, 1, 2, ….
    """

    path: TokenPath
    reads: tuple[int, ...]
    image_spans: tuple[tuple[int, int], ...]
    features: Tensor | None
    positions: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class PathScores:
    """P('+') at the read positions of a job, and the rows computed for it and for no job before."""

    values: list[float]
    computed: int
    passes: float


@dataclass(frozen=True, slots=True)
class _Packed:
    """The jobs of a pass as one tree, with the rows each is read at, and all of these."""

    jobs: Sequence[PathJob]
    tree: TokenTree
    reads: list[Rows]
    wanted: Rows


class TreeForward:
    """Computes P('+') at the read positions of many paths at once."""

    def __init__(
        self,
        checkpoint: PrmCheckpoint,
        meter: ScoringMeter,
        cache: PrefixCache,
        attention: AttentionName = "auto",
    ) -> None:
        self._checkpoint = checkpoint
        self._meter = meter
        self.cache = cache
        self.attention, self._planner = choose_attention(
            attention,
            checkpoint.device,
            checkpoint.model.get_input_embeddings().weight.dtype,
            _heads(checkpoint.language_model.config),
        )

    def __call__(self, jobs: Sequence[PathJob]) -> list[PathScores]:
        """Score every read position of every job in one pass; NaN where logits are not finite.

        Raises `FeaturesMissingError` if a job lacks the features of images that are to be computed.
        """
        packed = _pack(jobs)
        cached = self.cache.find(packed.tree, packed.wanted)
        plus = cached.plus
        if len(cached.new_rows):
            hidden, plan = self._run(packed, cached)
            new = packed.wanted[cached.places[packed.wanted] >= cached.count]
            plus[new] = self._read(hidden, cached.places[new] - cached.count)
            if self.cache.enabled and not np.isnan(plus[packed.wanted]).any():
                self._keep(packed.tree, cached, plan, plus)
        counts = _computed(packed, cached)
        carried = sum(count > 0 for count in counts)
        return [
            PathScores(plus[rows].tolist(), count, 1 / carried if count else 0.0)
            for rows, count in zip(packed.reads, counts, strict=True)
        ]

    def use_less_memory(self) -> bool:
        """Compute attention in smaller blocks from now on; False if they cannot be smaller."""
        return self._planner.use_less_memory()

    def _run(self, packed: _Packed, cached: CachedRows) -> tuple[Tensor, AttentionPlan]:
        """Run the model; a kernel that fails is given up for dense blocks, once and for all."""
        try:
            return self._pass(packed, cached)
        except FeaturesMissingError:
            raise
        except Exception as error:
            if self.attention == "blocks" or is_out_of_memory(error):
                raise
            _log.warning("FlexAttention failed, using dense blocks from now on: %s", error)
            self.attention, self._planner = "blocks", DensePlanner()
        return self._pass(packed, cached)

    def _pass(self, packed: _Packed, cached: CachedRows) -> tuple[Tensor, AttentionPlan]:
        """Return the last hidden state of the new rows, `[new rows, hidden]`, and their plan."""
        device = self._checkpoint.device
        attend = self._planner(packed.tree, cached, device)
        plan = AttentionPlan(attend, cached, collect=self.cache.enabled)
        new = cached.new_rows
        hidden: Tensor = self._checkpoint.language_model(
            inputs_embeds=self._embed(packed, new)[None],
            position_ids=torch.from_numpy(_positions(packed)[..., new]).to(device),
            use_cache=False,
            attention_plan=plan,
        ).last_hidden_state[0]
        self._meter.forward_passes += 1
        self._meter.tokens_computed += len(new)
        return hidden, plan

    def _embed(self, packed: _Packed, new: Rows) -> Tensor:
        """Return the input embeddings of the new rows, with the images in their places."""
        device = self._checkpoint.device
        embeds: Tensor = self._checkpoint.model.get_input_embeddings()(
            torch.from_numpy(packed.tree.ids[new]).to(device)
        )
        embeds = embeds.to(device)
        for segment in packed.tree.segments:
            job = packed.jobs[segment.path]
            shift = segment.start - segment.depth
            used = 0
            for start, stop in job.image_spans:
                # the rows of this image in this segment that are new: a run among the new rows
                first = max(start, segment.depth) + shift
                last = max(first, min(stop + shift, segment.stop))
                a, b = np.searchsorted(new, (first, last))
                if a < b:
                    if job.features is None:
                        raise FeaturesMissingError(f"path {segment.path}")
                    at = new[a:b] - shift - start + used
                    part = job.features[torch.from_numpy(at).to(job.features.device)]
                    embeds[a:b] = part.to(embeds.device, embeds.dtype)
                used += stop - start
        return embeds

    def _read(self, hidden: Tensor, rows: Rows) -> NDArray[np.float64]:
        plus = self._checkpoint.readout(hidden[torch.from_numpy(rows).to(hidden.device)])
        values: NDArray[np.float64] = plus.cpu().double().numpy()
        return values

    def _keep(
        self, tree: TokenTree, cached: CachedRows, plan: AttentionPlan, plus: NDArray[np.float64]
    ) -> None:
        try:
            self.cache.keep(tree, cached, plan.layers, plus)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.cache.clear()  # the scores are there; only what would be kept is lost


def _pack(jobs: Sequence[PathJob]) -> _Packed:
    tree = build_tree([job.path for job in jobs])
    reads = [tree.rows_of(i)[list(job.reads)] for i, job in enumerate(jobs)]
    return _Packed(jobs, tree, reads, np.unique(np.concatenate(reads)))


def _positions(packed: _Packed) -> Rows:
    """Return the position ids of all rows, `[1, rows]`, or `[axes, 1, rows]` if jobs have axes."""
    plain = packed.tree.positions()[None]
    axes = {len(job.positions) for job in packed.jobs if job.positions is not None}
    if not axes:
        return plain
    if len(axes) > 1:
        raise ValueError(f"the jobs of one pass have positions of {sorted(axes)} axes")
    out = np.repeat(plain[None], axes.pop(), axis=0)
    for segment in packed.tree.segments:
        own = packed.jobs[segment.path].positions
        if own is not None:
            end = segment.depth + segment.stop - segment.start
            out[:, 0, segment.start : segment.stop] = own[:, segment.depth : end]
    return out


def _computed(packed: _Packed, cached: CachedRows) -> list[int]:
    """Return for every job the new rows of the segments it is the first to go through."""
    counts = [0] * len(packed.jobs)
    for segment in packed.tree.segments:
        places = cached.places[segment.start : segment.stop]
        counts[segment.path] += int((places >= cached.count).sum())
    return counts


def _heads(config: object) -> tuple[int, int, int]:
    heads = int(getattr(config, "num_attention_heads", 1))
    size = getattr(config, "head_dim", None) or getattr(config, "hidden_size", heads) // heads
    return heads, int(getattr(config, "num_key_value_heads", None) or heads), int(size)


# --- passes that fit into memory ------------------------------------------------------------------


def _nothing_left() -> bool:
    return False


class TokenBatcher:
    """Runs paths in passes of at most `max_tokens` packed tokens, and of less when memory runs out.

    Passes are runs of neighbours in the token tree, so whole subtrees stay together; a prefix
    shared by two passes is part of both (computed in both, if nothing keeps it). A single path is
    always tried, however long. When memory runs out, in this order, and for good:

    1. what can be recomputed is given up (`make_room`);
    2. the bound becomes half of what was tried;
    3. a path that is alone is computed in smaller pieces (`use_less_memory`);
    4. that path has no result.

    Args:
        max_tokens: the bound of a pass.
        make_room: frees memory; returns False when there was nothing to free.
        use_less_memory: makes a pass need less; returns False when it cannot need less.
    """

    def __init__(
        self,
        max_tokens: int,
        make_room: Callable[[], bool] = _nothing_left,
        use_less_memory: Callable[[], bool] = _nothing_left,
    ) -> None:
        self.max_tokens = max_tokens
        self.out_of_memory = 0
        self._make_room = make_room
        self._use_less_memory = use_less_memory

    def run(
        self, paths: Sequence[TokenPath], compute: Callable[[list[int]], Sequence[T]]
    ) -> list[T | None]:
        """Return one result per path, or None where even the path alone does not fit in memory.

        `compute` takes indices into `paths` and returns one result for each. Paths should differ.
        """
        order, added = tree_sizes(paths)
        waiting = deque(zip(order, added, strict=True))
        results: list[T | None] = [None] * len(paths)
        while waiting:
            batch, size = self._next(paths, waiting)
            chosen = [path for path, _ in batch]
            computed = _unless_out_of_memory(compute, chosen)
            if computed is not None:
                for path, result in zip(chosen, computed, strict=True):
                    results[path] = result
            elif self._smaller(len(batch), size):
                waiting.extendleft(reversed(batch))
        return results

    def _smaller(self, paths: int, size: int) -> bool:
        """Make the next try need less memory; False if a single path cannot need less."""
        if self._make_room():
            return True
        self.out_of_memory += 1
        if paths == 1:
            return self._use_less_memory()
        self.max_tokens = max(1, size // 2)
        return True

    def _next(
        self, paths: Sequence[TokenPath], waiting: deque[tuple[int, int]]
    ) -> tuple[list[tuple[int, int]], int]:
        batch = [waiting.popleft()]
        size = len(paths[batch[0][0]].ids)
        while waiting and size + waiting[0][1] <= self.max_tokens:
            size += waiting[0][1]
            batch.append(waiting.popleft())
        return batch, size


def _unless_out_of_memory(
    compute: Callable[[list[int]], Sequence[T]], chosen: list[int]
) -> Sequence[T] | None:
    try:
        return compute(chosen)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    if torch.cuda.is_available():  # only here the failed pass no longer holds its tensors
        torch.cuda.empty_cache()
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's or the machine's memory is full.

    Libraries below torch have no class for it: theirs are `RuntimeError`s told by their words.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _MEMORY_WORDS)
