"""The families of process reward models: one row each, and nothing else knows their names.

A row says how a model wants its prompt, where and how its score is read, what its weights are and
how its images are cut. To add a family, add a row here and a test in `tests/families`; a
checkpoint then names the row in its `vprm.json` or when it is loaded. `docs/families.md` holds the
same table for users.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from vprm_search.checkpoints.identity import checkpoint_digest
from vprm_search.errors import CheckpointError, ConfigError
from vprm_search.ids import digest
from vprm_search.records import read_json
from vprm_search.scoring.pixels import IMAGENET_MEAN, IMAGENET_STD, PixelBudget, PreprocessConfig
from vprm_search.scoring.prompt.layout import PrmLayout
from vprm_search.scoring.prompt.marker_layout import TOKENIZER_BOS, MarkerLayout

Layout = PrmLayout | MarkerLayout
ImageRule = PreprocessConfig | PixelBudget
Backbone = Literal["internvl", "qwen2_5_vl", "text", "chat"]
ReadoutKind = Literal["token_pair", "full_vocabulary", "two_classes", "one_value", "judge"]
Evidence = Literal["verified", "third_party", "inferred"]

DEFAULT_FAMILY = "visualprm"
SCORER_FILE = "vprm.json"
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_TILES_6 = PreprocessConfig(max_tiles=6)
_QWEN_CHAT = "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n"
_QWEN_TOKENS = ("<|im_start|>", "<|im_end|>")


@dataclass(frozen=True, slots=True)
class PrmFamily:
    """One family of process reward models.

    Attributes:
        name: what `family=` and the `family` of a `vprm.json` say.
        layout: the prompt; None for judges, which are asked in words (`JudgeScorer`).
        readout: softmax over two words, probability of '+' in the whole vocabulary, a head with two
            classes, or one with a single value (sigmoid).
        backbone: which native transformers classes hold the weights.
        images: how images become pixel values; None for models that read text only.
        aggregation: the path score its authors select by.
        public: repositories of the public checkpoints.
        evidence: how the row is known: read in the authors' code, in others' code that uses the
            model, or inferred in part; `note` says what is not certain.
        head: name of the scoring head's tensors, for the two kinds of heads.
        system_prompt_source: where the system prompt is published that this row does not hold and
            that must be given; empty if nothing is missing.
    """

    name: str
    layout: Layout | None
    readout: ReadoutKind
    backbone: Backbone
    aggregation: str
    public: tuple[str, ...]
    evidence: Evidence
    images: ImageRule | None = None
    note: str = ""
    head: str = ""
    system_prompt_source: str = ""


def find_family(name: str) -> PrmFamily:
    """Return a family by name. Raises `ConfigError` for a name that is not in the table."""
    if name not in FAMILIES:
        raise ConfigError(
            f"{name!r} is no family of reward models; known are {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[name]


_ROWS = (
    PrmFamily(
        name=DEFAULT_FAMILY,
        layout=PrmLayout(),
        readout="token_pair",
        backbone="internvl",
        images=PreprocessConfig(),
        aggregation="mean",
        public=("OpenGVLab/VisualPRM-8B", "OpenGVLab/VisualPRM-8B-v1_1"),
        evidence="verified",
        note="v1.0's own code writes one image tag only; several images follow v1.1 here.",
    ),
    PrmFamily(
        name="dreamprm-1.5",
        layout=PrmLayout(
            own_step_turns=True,
            first_turn="{image}### Question:\n{question}",
            after_image="",
            system_prompt=None,
        ),
        readout="full_vocabulary",
        backbone="internvl",
        images=PreprocessConfig(),
        aggregation="mean",
        public=("Cooolder/DreamPRM-1_5-InstanceTable", "Cooolder/DreamPRM-1_5-InstanceNet"),
        evidence="verified",
        note="Its authors cut steps by numbers and keep a final 'Answer: X' as a step of its own.",
        system_prompt_source="PRM_SYSTEM_PROMPT in utils.py of coder-qicao/DreamPRM-1.5",
    ),
    PrmFamily(
        name="qwen-vl-prm",
        layout=PrmLayout(
            first_turn="{image}### Question:\n{question}\n\n### Solution Process:\n{step}",
            image_start="<|vision_start|>",
            image_token="<|image_pad|>",  # noqa: S106 - the name of a placeholder
            image_end="<|vision_end|>",
            after_image="",
            system_prompt=None,
            closes_empty_turns=True,
        ),
        readout="token_pair",
        backbone="qwen2_5_vl",
        images=PixelBudget(),
        aggregation="mean",
        public=("ob11/Qwen-VL-PRM-3B", "ob11/Qwen-VL-PRM-7B"),
        evidence="verified",
        note="Its authors' search reward, p^0.3 / tokens^0.6 and -1 for '-', is not used here.",
        system_prompt_source="PRM_SYSTEM_PROMPT_NORMAL_TOK_V2 in prompts.py of theogbrand/vlprm",
    ),
    PrmFamily(
        name="rlhflow",
        layout=PrmLayout(
            first_turn="{image}{question} {step}",
            reads_images=False,
            begin_token="<|begin_of_text|>",  # noqa: S106
            im_start="<|start_header_id|>",
            header_end="<|end_header_id|>",
            after_header="\n\n",
            im_end="<|eot_id|>",
            after_turn="",
            system_role="system",
            user_role="user",
            assistant_role="assistant",
            system_prompt="Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n",
            strip_turns=True,
            closes_empty_turns=True,
        ),
        readout="token_pair",
        backbone="text",
        aggregation="mean",
        public=("RLHFlow/Llama3.1-8B-PRM-Mistral-Data", "RLHFlow/Llama3.1-8B-PRM-Deepseek-Data"),
        evidence="third_party",
        note="The system turn is what Llama 3.1's chat template writes by itself (inferred).",
    ),
    PrmFamily(
        name="mm-prm",
        layout=MarkerLayout(
            prefix="<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n"
            "<|im_start|>assistant\n{image}Question: {question}\nProcess: ",
            control_tokens=_QWEN_TOKENS,
            system_prompt=PrmLayout().system_prompt,
            begin_token="<s>",  # noqa: S106
            marker="<prm>",
            plus_word="Yes",
            minus_word="No",
            reads_images=True,
        ),
        readout="token_pair",
        backbone="internvl",
        images=_TILES_6,
        aggregation="mean",
        public=("Cierra0506/MM-PRM",),
        evidence="third_party",
        note="Inferred: the template's system message, InternLM2's begin token, and the names "
        "'Yes' and 'No' in its vocabulary; all are fields of the layout.",
    ),
    PrmFamily(
        name="qwen2.5-math-prm",
        layout=MarkerLayout(
            prefix=_QWEN_CHAT + "{question}<|im_end|>\n<|im_start|>assistant\n",
            control_tokens=_QWEN_TOKENS,
            system_prompt="Please reason step by step, and put your final answer within \\boxed{}.",
            marker="<extra_0>",
        ),
        readout="two_classes",
        head="score",
        backbone="text",
        aggregation="product",
        public=("Qwen/Qwen2.5-Math-PRM-7B", "Qwen/Qwen2.5-Math-PRM-72B"),
        evidence="third_party",
        note="The aggregation is inferred.",
    ),
    PrmFamily(
        name="math-shepherd",
        layout=MarkerLayout(
            prefix="{question} ",
            begin_token=TOKENIZER_BOS,
            separator="\n",
            marker=" ки",
            text_marker=True,
            plus_word="▁+",
            minus_word="▁-",
        ),
        readout="token_pair",
        backbone="text",
        aggregation="min",
        public=("peiyi9979/math-shepherd-mistral-7b-prm",),
        evidence="third_party",
        note="Ids 648, 387 and 12902 in the public tokenizer. Paths end at the sliding window "
        "(4096 tokens), below which it changes nothing.",
    ),
    PrmFamily(
        name="skywork-o1-prm",
        layout=MarkerLayout(
            prefix="{question}\n",
            begin_token=TOKENIZER_BOS,
            marker="\n",
            text_marker=True,
            reserved=False,
            steps_apart=True,
        ),
        readout="one_value",
        head="v_head.summary",
        backbone="text",
        aggregation="mean",
        public=(
            "Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B",
            "Skywork/Skywork-o1-Open-PRM-Qwen-2.5-7B",
        ),
        evidence="third_party",
        note="Its authors' steps are lines; a step of several lines is read at its end only. The "
        "aggregation is inferred.",
    ),
    PrmFamily(
        name="ursa-rm",
        layout=MarkerLayout(
            prefix=_QWEN_CHAT + "You are given a problem and a step-by-step solution. You need to "
            "check the correctness of each step.\nQuestion:{question}\n",
            control_tokens=_QWEN_TOKENS,
            system_prompt="You are a helpful assistant.",
            separator="\n",
            marker=" и",
            text_marker=True,
            strip_steps=True,
        ),
        readout="one_value",
        head="score",
        backbone="text",
        aggregation="min",
        public=("URSA-MATH/URSA-RM-8B",),
        evidence="third_party",
        note="Text and score only: the vision tower (SAM + SigLIP) has no native transformers "
        "class, so the public multimodal checkpoint is refused with an error.",
    ),
    PrmFamily(
        name="judge",
        layout=None,
        readout="judge",
        backbone="chat",
        aggregation="mean",
        public=("any LangChain chat model",),
        evidence="verified",
        note="Our own wording; a judge is no published reward model.",
    ),
)

FAMILIES: Mapping[str, PrmFamily] = MappingProxyType({row.name: row for row in _ROWS})
"""Every family by name."""


class ScorerFile(BaseModel):
    """The family, prompt layout and image rule of a checkpoint, stored beside its weights.

    What a file leaves out is what the row of its `family` says (`families.FAMILIES`); a file
    without `family` belongs to VisualPRM. `preprocess` is null for models that read text only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 1
    family: str = DEFAULT_FAMILY
    layout: Layout = PrmLayout()
    preprocess: ImageRule | None = PreprocessConfig()

    @model_validator(mode="before")
    @classmethod
    def _from_the_table(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        family = find_family(str(data.get("family", DEFAULT_FAMILY)))
        if family.layout is None:
            raise ValueError(f"the family {family.name!r} has no checkpoints")
        filled = {"layout": family.layout, "preprocess": family.images, **data}
        layout = filled["layout"]
        if isinstance(layout, dict) and isinstance(family.layout, PrmLayout):
            # files from before the field was there
            empty = {"closes_empty_turns": family.layout.closes_empty_turns}
            filled["layout"] = empty | layout
        return filled

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave the default family out: files of VisualPRM stay what they were."""
        data: dict[str, Any] = handler(self)
        if self.family == DEFAULT_FAMILY:
            del data["family"]
        return data

    def write(self, directory: str | Path) -> Path:
        """Write `vprm.json` into a checkpoint directory and return its path."""
        path = Path(directory) / SCORER_FILE
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return path


def scorer_identity(
    directory: Path,
    settings: ScorerFile,
    dtype: str,
    *,
    quantization: str | None = None,
    orm: bool = False,
) -> str:
    """Return a name, 64 hex digits, for everything a score depends on besides the request.

    The scorer of a process and the server's plugin name the same files in the same precision by the
    same name, so a score cache serves both.

    Args:
        directory: of the checkpoint; its files count by content, see `checkpoint_digest`.
        settings: family, prompt layout and image rule in use.
        dtype: of the weights as they are computed, for example "torch.float32".
        quantization: how the weights are quantized when loaded, None for not.
        orm: whether whole answers are scored instead of steps.

    Raises:
        OSError: a file cannot be read.
    """
    rule = settings.preprocess
    parts: list[str | bytes] = [
        checkpoint_digest(directory),
        settings.layout.model_dump_json(),
        "" if rule is None else rule.model_dump_json(),
        dtype,
    ]
    if settings.family != DEFAULT_FAMILY:  # what is not VisualPRM's plain way adds to the name
        parts.append(f"family {settings.family}")
    parts += [] if quantization is None else [f"quantized {quantization}"]
    parts += ["orm"] if orm else []
    return digest("scorer", *parts).hex()


def read_scorer_file(directory: str | Path, family: str | None = None) -> ScorerFile:
    """Return a checkpoint's `vprm.json`, or what can be told from its other files.

    Without `vprm.json` nothing tells a reward model from a chat model, so `family` must be given.
    The layout is then that of `family`, and a tile rule comes from the image
    processor's file: tile size, mean and deviation, and for VisualPRM the bounds of the tiles. What
    that file leaves out is the vision model's image size and the family's values. A `family` other
    than the one in the file takes the place of the whole file. Raises `CheckpointError` for a file
    that is not valid, or missing with no `family`, `ConfigError` for an unknown family.
    """
    name = find_family(family or DEFAULT_FAMILY).name
    path = Path(directory) / SCORER_FILE
    if path.is_file():
        try:
            stored = ScorerFile.model_validate_json(path.read_text(encoding="utf-8"))
        except (ValidationError, OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path} is not a valid scorer file: {error}") from error
        if family is None or stored.family == family:
            return stored
    elif family is None:
        raise CheckpointError(
            f"{directory} has no {SCORER_FILE}: nothing says that it is a process reward model, "
            "and scores of a chat model mean nothing. Convert the original (vprm-search convert), "
            f"or name the family: family= in Python, or a {SCORER_FILE} with "
            f'{{"version": 1, "family": "{DEFAULT_FAMILY}"}}'
        )
    default = find_family(name).images
    try:
        if isinstance(default, PreprocessConfig):
            guessed = _guess_preprocess(Path(directory), default, name == DEFAULT_FAMILY)
            return ScorerFile.model_validate({"family": name, "preprocess": guessed})
        return ScorerFile.model_validate({"family": name})
    except (ValidationError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"the image processor's file in {directory} cannot be read ({error}); "
            f"write a {SCORER_FILE} beside the weights instead"
        ) from error


def _guess_preprocess(
    directory: Path, default: PreprocessConfig, bounds_too: bool
) -> PreprocessConfig:
    vision = read_json(directory / "config.json").get("vision_config")
    if vision is None:
        return default  # no model with tiles, as the check of the directory will say
    image_size = vision["image_size"]
    side = image_size[0] if isinstance(image_size, list) else image_size
    processor: dict[str, Any] = {}
    for name in _PROCESSOR_FILES:
        if (directory / name).is_file():
            data = read_json(directory / name)
            processor = data.get("image_processor", data)
            break
    bounds = processor if bounds_too else {}
    return PreprocessConfig(
        tile_size=side,
        min_tiles=bounds.get("min_patches", default.min_tiles),
        max_tiles=bounds.get("max_patches", default.max_tiles),
        mean=tuple(processor.get("image_mean", IMAGENET_MEAN)),
        std=tuple(processor.get("image_std", IMAGENET_STD)),
    )
