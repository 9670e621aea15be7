"""One step of the engine: calls become prompts, prompts a token tree, the tree scores."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from vprm_search.errors import InputError
from vprm_search.scoring.engine.attention import AttentionName
from vprm_search.scoring.engine.call_queue import AbandonedError
from vprm_search.scoring.engine.checkpoint import PrmCheckpoint
from vprm_search.scoring.engine.forward import (
    FeaturesMissingError,
    PathJob,
    PathScores,
    ScoringMeter,
    TokenBatcher,
    TreeForward,
)
from vprm_search.scoring.engine.images import ImageEncoder
from vprm_search.scoring.engine.prefix_cache import PrefixCache
from vprm_search.scoring.engine.token_tree import TokenPath, tree_sizes
from vprm_search.scoring.prompt.layout import ScoringPrompt
from vprm_search.scoring.reasons import (
    BAD_INPUT,
    NOT_FINITE,
    OUT_OF_MEMORY,
    TOO_LONG,
    lack_of_images,
)
from vprm_search.types import Counts, ScoreRequest, ScoreResult, StepScore

Call = Sequence[ScoreRequest]
_FAILED = PathScores([], 0, 0.0)


@dataclass(slots=True)
class _Asked:
    """A request and its prompt, or the reason why it cannot be scored."""

    request: ScoreRequest
    prompt: ScoringPrompt | str

    @property
    def path(self) -> TokenPath | None:
        if isinstance(self.prompt, str):
            return None
        return TokenPath(self.request.problem.images, self.prompt.scored_ids)


class ScoringEngine:
    """Scores calls with one checkpoint; serves one thread at a time.

    Args:
        checkpoint: the model and all that belongs to it.
        max_batch_tokens: bound of a pass, in rows of its token tree.
        image_cache_tokens: bound of the image embeddings kept between steps, in image tokens.
        prefix_cache_bytes: bound of the keys and values kept between steps; 0 keeps nothing.
        attention: "auto", "blocks" or "flex".
    """

    def __init__(
        self,
        checkpoint: PrmCheckpoint,
        *,
        max_batch_tokens: int,
        image_cache_tokens: int,
        prefix_cache_bytes: int,
        attention: AttentionName,
    ) -> None:
        self.meter = ScoringMeter()
        self.cache = PrefixCache(prefix_cache_bytes)
        self.forward = TreeForward(checkpoint, self.meter, self.cache, attention)
        self.images = ImageEncoder(
            checkpoint, self.meter, image_cache_tokens, self.cache.give_up_half
        )
        self.batcher = TokenBatcher(
            max_batch_tokens, self.cache.give_up_half, self.forward.use_less_memory
        )
        self.is_abandoned: Callable[[], bool] = lambda: False  # asked before every pass
        self._checkpoint = checkpoint

    def step(self, calls: Sequence[Call]) -> Iterator[tuple[int, list[ScoreResult]]]:
        """Yield `(index, results)` of every call, those that finish first before the others."""
        started = time.perf_counter()
        self.images.begin_step()
        asked = [[self._prompt(request) for request in call] for call in calls]
        for numbers in self._groups(asked):  # calls whose token trees fit into one pass together
            items = [item for number in numbers for item in asked[number]]
            with torch.inference_mode():
                self.cache.begin_call()  # what these calls use now is not dropped meanwhile
                try:
                    jobs = self._jobs(items)  # without the images that the cache knows
                    scores = self._passes(jobs)  # tree, cached rows, forward, readout, cache
                except FeaturesMissingError:  # the cache was given up meanwhile
                    jobs = self._jobs(items, every_image=True)
                    scores = self._passes(jobs)
            results = iter([self._result(item, scores) for item in items])
            now = time.perf_counter()
            self.meter.seconds, started = self.meter.seconds + now - started, now
            for number in numbers:
                yield number, [next(results) for _ in asked[number]]

    def prompt_ids(self, request: ScoreRequest) -> list[int]:
        """Return the tokens of a request up to its last score, none if it cannot be scored."""
        prompt = self._prompt(request).prompt
        return [] if isinstance(prompt, str) else list(prompt.scored_ids)

    def _prompt(self, request: ScoreRequest) -> _Asked:
        """Write the prompt of a request, or the reason why it cannot be scored."""
        if lack := lack_of_images(request):
            return _Asked(request, lack)
        counts = []
        for image in request.images:
            count = self.images.tokens(image)
            if isinstance(count, str):
                return _Asked(request, count)
            counts.append(count)
        try:
            prompt = self._checkpoint.builder.build(request.problem.question, request.steps, counts)
        except InputError as error:
            return _Asked(request, f"{BAD_INPUT}: {error}")
        size, limit = len(prompt.scored_ids), self._checkpoint.max_tokens
        if size > limit:
            return _Asked(
                request,
                f"{TOO_LONG}: problem and solution take {size} tokens ({sum(counts)} for images), "
                f"the model's limit is {limit}; use fewer tiles, or merge or shorten the steps",
            )
        return _Asked(request, self.images.placed(prompt, request.images))

    def _groups(self, asked: Sequence[Sequence[_Asked]]) -> Iterator[list[int]]:
        """Yield runs of calls whose trees together stay within the bound of a pass, if they can."""
        group: list[int] = []
        size = 0
        for number, call in enumerate(asked):
            rows = sum(tree_sizes([path for item in call if (path := item.path)])[1])
            if group and size + rows > self.batcher.max_tokens:
                yield group
                group, size = [], 0
            group.append(number)
            size += rows
        if group:
            yield group

    def _jobs(
        self, asked: Sequence[_Asked], *, every_image: bool = False
    ) -> dict[TokenPath, PathJob]:
        """Return a job for every distinct path; images in the prefix cache need no features."""
        jobs: dict[TokenPath, PathJob] = {}
        for item in asked:
            path = item.path
            if path is None or path in jobs or isinstance(item.prompt, str):
                continue
            spans, features = item.prompt.image_spans, None
            end = spans[-1][1] if spans else 0
            if end and (every_image or self.cache.cached_tokens(path) < end):
                features = self.images.features(item.request.images)
            if isinstance(features, str):
                item.prompt = features
                continue
            reads, positions = item.prompt.read_positions, item.prompt.positions
            jobs[path] = PathJob(path, reads, spans, features, positions)
        return jobs

    def _passes(self, jobs: dict[TokenPath, PathJob]) -> dict[TokenPath, PathScores | None]:
        """Score all paths in as few passes as memory allows; None for one that never fits."""
        scores = self._run(list(jobs.values()))
        for number, (job, found) in enumerate(zip(jobs.values(), scores, strict=True)):
            if found is not None and any(map(math.isnan, found.values)):
                scores[number] = self._isolated(job, found)
        self.meter.out_of_memory = self.batcher.out_of_memory
        return dict(zip(jobs, scores, strict=True))

    def _run(self, jobs: Sequence[PathJob]) -> list[PathScores | None]:
        def one_pass(chosen: Sequence[int]) -> Sequence[PathScores]:
            if self.is_abandoned():
                raise AbandonedError
            return self.forward([jobs[number] for number in chosen])

        return self.batcher.run([job.path for job in jobs], one_pass)

    def _isolated(self, job: PathJob, whole: PathScores) -> PathScores:
        """Score one path step by step, each in a pass of its own, up to the first NaN.

        A NaN spreads to every row of its pass, because a masked weight of 0 times NaN is NaN: only
        so is it known which steps really are without a score.
        """
        values: list[float] = []
        computed, passes = whole.computed, whole.passes
        for read in job.reads:
            path = TokenPath(job.path.group, job.path.ids[: read + 1])
            found = self._run([replace(job, path=path, reads=(read,))])[0]
            values.append(math.nan if found is None else found.values[0])
            if found is not None:
                computed, passes = computed + found.computed, passes + found.passes
            if math.isnan(values[-1]):
                break
        values += [math.nan] * (len(job.reads) - len(values))
        return PathScores(values, computed, passes)

    def _result(self, item: _Asked, scores: dict[TokenPath, PathScores | None]) -> ScoreResult:
        """Return the result of a request; the first of equal ones bears the cost."""
        steps = len(item.request.steps)
        self.meter.requests += 1
        self.meter.steps += steps
        images = self.images.take_encoded(item.request.images)
        if isinstance(item.prompt, str):
            failed = ScoreResult.failed(steps, item.prompt)
            return replace(failed, cost=Counts(images_encoded=images))
        path = TokenPath(item.request.problem.images, item.prompt.scored_ids)
        found = scores[path]
        size = len(path.ids)
        self.meter.tokens_requested += size
        if found is None:
            reason = f"{OUT_OF_MEMORY}: {size} tokens do not fit into the device's memory"
            values, found = tuple(StepScore(None, reason) for _ in range(steps)), _FAILED
        else:
            values = tuple(_step_score(value) for value in found.values)
            scores[path] = replace(found, computed=0, passes=0.0)
        cost = Counts(
            tokens_sent=size,
            tokens_computed=found.computed,
            images_encoded=images,
            forward_passes=found.passes,
        )
        return ScoreResult(values, item.prompt.prefix_tokens, item.prompt.step_tokens, cost)


def _step_score(value: float) -> StepScore:
    if math.isfinite(value):
        return StepScore(value)
    return StepScore(None, f"{NOT_FINITE}: the model's logits for '+' and '-' are NaN or infinite")
