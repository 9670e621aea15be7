"""The plugin that vLLM calls: a request in, prompts out; the engine's rows in, scores out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import vllm
from fastapi import HTTPException
from vllm.config import VllmConfig
from vllm.outputs import PoolingRequestOutput
from vllm.plugins.io_processors.interface import IOProcessor
from vllm.pooling_params import PoolingParams
from vllm.renderers import BaseRenderer

from vprm_search_vllm import ARCHITECTURE, __version__
from vprm_search_vllm.access_middleware import tenants
from vprm_search_vllm.images import ImageNames, KnownImage
from vprm_search_vllm.intake import PreparedRequest, RequestIntake, open_intake
from vprm_search_vllm.scoring_requests import PathPlan, RequestPlan, RequestsInFlight
from vprm_search_vllm.shared.errors import InputError
from vprm_search_vllm.shared.scoring.families import (
    ScorerFile,
    find_family,
    read_scorer_file,
    scorer_identity,
)
from vprm_search_vllm.shared.scoring.pixels import PreprocessConfig, tile_grid
from vprm_search_vllm.shared.scoring.prompt.layout import PrmLayout, PromptBuilder
from vprm_search_vllm.shared.scoring.prompt.marker_layout import MarkerBuilder
from vprm_search_vllm.shared.scoring.vllm.contract import (
    VERSION,
    DescribeBody,
    Description,
    Limits,
    MissingImagesReply,
    RequestError,
    ScoringBody,
)
from vprm_search_vllm.shared.types import ImageData

_BACKBONES = ("internvl", "text")
_METHOD = "from_2_way_softmax"

# vLLM asks for the pooling parameters right after the prompts, in the same task.
_use_prefix_cache: ContextVar[bool] = ContextVar("use_prefix_cache", default=True)


class StepScoreProcessor(IOProcessor[Any, dict[str, Any]]):
    """Serves version 1 of `shared.scoring.vllm.contract` for one checkpoint with a `vprm.json`.

    Raises `ValueError` at start-up when the server was not started as `vprm-search serve` starts
    it: the scores would then be another model's.
    """

    def __init__(self, vllm_config: VllmConfig, renderer: BaseRenderer) -> None:
        super().__init__(vllm_config, renderer)
        config = vllm_config.model_config
        directory = Path(config.model)
        if not directory.is_dir():
            raise ValueError(f"{config.model} is not a local directory; serve a local checkpoint")
        self.file = read_scorer_file(directory)
        # its own copy: vLLM's threads switch special-token parsing on and off in theirs
        tokenizer = copy.deepcopy(renderer.get_tokenizer())
        self.builder = _builder(tokenizer, self.file)
        _check_served_as_needed(config, self.file, self.builder, tokenizer)
        limits, most = Limits.from_environment(), _image_limit(config, self.file)
        self.limits = limits.model_copy(update={"max_images": min(limits.max_images, most)})
        self.names = ImageNames(self.file.model_dump_json())
        self.in_flight: RequestsInFlight[RequestPlan] = RequestsInFlight()
        self.max_tokens = int(config.max_model_len)
        self.tokens_per_tile = int(getattr(config.hf_config, "image_seq_length", 0))
        self.identity = scorer_identity(
            directory, self.file, str(config.dtype), quantization=config.quantization
        )
        self.intake = RequestIntake(self.limits, len(tenants()), self._prepared)
        open_intake(self.intake)

    def parse_data(self, data: object) -> PreparedRequest:
        """Return the request that `data` is, or is the ticket of; a problem is an HTTP error."""
        try:
            return self.intake.take(data)
        except RequestError as error:
            raise HTTPException(error.status, str(error)) from None

    def pre_process(
        self, prompt: PreparedRequest, request_id: str | None = None, **kwargs: Any
    ) -> Sequence[Any]:
        """Return one prompt per path, as token ids with the images beside them."""
        try:
            self.in_flight.add(request_id, prompt.plan)
        except RequestError as error:
            raise HTTPException(error.status, str(error)) from None
        _use_prefix_cache.set(prompt.use_prefix_cache)
        # vLLM wants at least one prompt; nobody reads that one
        return list(prompt.prompts) or [{"prompt_token_ids": [0]}]

    def merge_pooling_params(self, params: PoolingParams | None = None) -> PoolingParams:
        """Ask for a row per token; rows inside a cached prefix may be left out."""
        return PoolingParams(
            task="token_classify",
            use_activation=True,
            skip_reading_prefix_cache=not _use_prefix_cache.get(),
        )

    def post_process(
        self,
        model_output: Sequence[PoolingRequestOutput],
        request_id: str | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the reply of a request."""
        plan = self.in_flight.get(request_id)
        if plan.answer is not None:
            return plan.answer
        outputs = [
            (output.prompt_token_ids, output.outputs.data.reshape(-1).tolist())
            for output in model_output
        ]
        try:
            reply = plan.reply(outputs if plan.planned() else [], self.identity)
        except RequestError as error:
            raise HTTPException(error.status, str(error)) from None
        return reply.model_dump(exclude_unset=True)

    def _prepared(
        self, body: ScoringBody | DescribeBody, tenant: str, images: dict[str, KnownImage]
    ) -> PreparedRequest:
        """Return what the engine is asked for a tenant's request, of whose images some are known.

        Raises `RequestError` 413 for more tokens than the limits allow.
        """
        if isinstance(body, DescribeBody):
            return PreparedRequest(RequestPlan(answer=self._description(tenant)))
        missing = [digest for digest in dict.fromkeys(body.images) if digest not in images]
        if missing:
            reply = MissingImagesReply(version=VERSION, missing_images=missing)
            return PreparedRequest(RequestPlan(answer=reply.model_dump()))
        plan = self._plan(body, [self._image_tokens(images[digest]) for digest in body.images])
        names = [self.names.name(digest, tenant) for digest in body.images]
        salt = self.names.salt(body.cache_salt, tenant)
        pictures = [images[digest].data for digest in body.images]
        prompts = tuple(_prompt(path, salt, pictures, names) for path in plan.planned())
        return PreparedRequest(plan, prompts, body.use_prefix_cache)

    def _plan(self, body: ScoringBody, counts: Sequence[int]) -> RequestPlan:
        paths = tuple(self._path(body.question, steps, counts) for steps in body.paths)
        total = sum(len(path.ids) for path in paths if isinstance(path, PathPlan))
        if total > self.limits.max_tokens:
            raise RequestError(
                413,
                f"the paths have {total} tokens; this server takes at most "
                f"{self.limits.max_tokens} in one request: send fewer paths",
            )
        return RequestPlan(paths, tuple(map(len, body.paths)))

    def _path(self, question: str, steps: Sequence[str], counts: Sequence[int]) -> PathPlan | str:
        try:
            plan = PathPlan.of(self.builder.build(question, steps, counts))
        except InputError as error:
            return f"bad_input: {error}"
        if len(plan.ids) > self.max_tokens:
            return (
                f"too_long: problem and solution take {len(plan.ids)} tokens ({sum(counts)} for "
                f"images), the server's limit is {self.max_tokens}; use fewer tiles, or merge or "
                "shorten the steps"
            )
        return plan

    def _image_tokens(self, image: KnownImage) -> int:
        rule = self.file.preprocess
        if not isinstance(rule, PreprocessConfig):
            raise RequestError(400, "this model reads text only")
        columns, rows = tile_grid(image.width, image.height, rule)
        tiles = columns * rows
        return (tiles + (rule.thumbnail and tiles > 1)) * self.tokens_per_tile

    def _description(self, tenant: str) -> dict[str, Any]:
        images = self.intake.images(tenant)
        config = self.vllm_config.model_config
        names = config.served_model_name or config.model
        return Description(
            version=VERSION,
            identity=self.identity,
            model=names if isinstance(names, str) else names[0],
            family=self.file.family,
            layout=self.file.layout.model_dump(),
            preprocess=self.file.preprocess and self.file.preprocess.model_dump(),
            limits=self.limits.model_dump(),
            max_model_len=self.max_tokens,
            dtype=str(config.dtype).removeprefix("torch."),
            plugin=__version__,
            vllm=vllm.__version__,
            requests_under_way=len(self.in_flight),
            images_kept=len(images),
            image_bytes_kept=images.kept_bytes,
        ).model_dump()


def _prompt(
    path: PathPlan, salt: str | None, images: list[ImageData], names: list[str]
) -> dict[str, Any]:
    prompt: dict[str, Any] = {"prompt_token_ids": list(path.sent)}
    if salt is not None:
        prompt["cache_salt"] = salt
    if images:
        prompt["multi_modal_data"] = {"image": list(images)}
        prompt["multi_modal_uuids"] = {"image": list(names)}
    return prompt


def _builder(tokenizer: Any, file: ScorerFile) -> PromptBuilder | MarkerBuilder:
    if isinstance(file.layout, PrmLayout):
        return PromptBuilder(tokenizer, file.layout)
    return MarkerBuilder(tokenizer, file.layout)


def _image_limit(config: Any, file: ScorerFile) -> int:
    if not isinstance(file.preprocess, PreprocessConfig):
        return 0
    return int(config.get_multimodal_config().get_limit_per_prompt("image"))


def _check_served_as_needed(
    config: Any, file: ScorerFile, builder: PromptBuilder | MarkerBuilder, tokenizer: Any
) -> None:
    """Raise `ValueError` when the server would answer with other numbers than P('+').

    `config` is vLLM's model configuration; the checks name the option to start it with.
    """
    family = find_family(file.family)
    if family.readout != "token_pair" or family.backbone not in _BACKBONES:
        raise ValueError(
            f"the family {family.name!r} ({family.backbone}, {family.readout}) is not served by "
            f"this plugin; it serves token pairs of {' and '.join(_BACKBONES)} models"
        )
    hf_config = config.hf_config
    words = getattr(hf_config, "classifier_from_token", None) or []
    ids = [tokenizer.convert_tokens_to_ids(word) for word in words]
    needed = [builder.minus_id, builder.plus_id]
    if ids != needed:
        names = tokenizer.convert_ids_to_tokens(needed)
        raise ValueError(
            f"classifier_from_token is {words} (ids {ids}); needed is {names} (ids {needed})"
        )
    if getattr(hf_config, "method", None) != _METHOD:
        raise ValueError(f"--hf-overrides must set method to {_METHOD!r}")
    if isinstance(file.preprocess, PreprocessConfig):
        _check_images(hf_config, file.preprocess, tokenizer.convert_tokens_to_ids, file)


def _check_images(hf_config: Any, rule: PreprocessConfig, token_id: Any, file: ScorerFile) -> None:
    if list(hf_config.architectures) != [ARCHITECTURE]:
        raise ValueError(f"--hf-overrides must set architectures to [{ARCHITECTURE!r}]")
    token = token_id(file.layout.image_token)
    if hf_config.image_token_id != token:
        raise ValueError(
            f"the layout's image token has id {token}, the model's is {hf_config.image_token_id}"
        )
    height, width = hf_config.vision_config.image_size
    if (height, width) != (rule.tile_size, rule.tile_size):
        raise ValueError(
            f"tiles are {rule.tile_size} pixels wide, the vision model takes {width}x{height}"
        )
