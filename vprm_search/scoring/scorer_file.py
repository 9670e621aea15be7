"""`vprm.json`: what a scorer must know about a checkpoint that transformers does not store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from vprm_search.errors import CheckpointError
from vprm_search.scoring.families import DEFAULT_FAMILY, ImageRule, Layout, find_family
from vprm_search.scoring.pixels.tiles import IMAGENET_MEAN, IMAGENET_STD, PreprocessConfig
from vprm_search.scoring.prompt.layout import PrmLayout

SCORER_FILE = "vprm.json"
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


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
        return {"layout": family.layout, "preprocess": family.images, **data}

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


def read_scorer_file(directory: str | Path, family: str | None = None) -> ScorerFile:
    """Return a checkpoint's `vprm.json`, or what can be told from its other files.

    Without `vprm.json` the layout is that of `family`, and a tile rule comes from the image
    processor's file: tile size, mean and deviation, and for VisualPRM the bounds of the tiles. What
    that file leaves out is the vision model's image size and the family's values. A `family` other
    than the one in the file takes the place of the whole file. Raises `CheckpointError` for a file
    that is not valid, `ConfigError` for an unknown family.
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


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object from a checkpoint's file. Raises `CheckpointError` if it is not one."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return data


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
