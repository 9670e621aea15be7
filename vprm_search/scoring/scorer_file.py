"""`vprm.json`: what a scorer must know about a checkpoint that transformers does not store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from vprm_search.errors import CheckpointError
from vprm_search.scoring.layout import PrmLayout
from vprm_search.scoring.preprocess import IMAGENET_MEAN, IMAGENET_STD, PreprocessConfig

SCORER_FILE = "vprm.json"
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


class ScorerFile(BaseModel):
    """The prompt layout and the image rule of a checkpoint, stored beside its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 1
    layout: PrmLayout = PrmLayout()
    preprocess: PreprocessConfig = PreprocessConfig()

    def write(self, directory: str | Path) -> Path:
        """Write `vprm.json` into a checkpoint directory and return its path."""
        path = Path(directory) / SCORER_FILE
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return path


def read_scorer_file(directory: str | Path) -> ScorerFile:
    """Return a checkpoint's `vprm.json`, or what can be told from its other files.

    Without `vprm.json` the layout is VisualPRM's, and the image rule comes from the image
    processor's file: tile size, bounds of the tiles, mean and deviation. What that file leaves out
    is the vision model's image size and VisualPRM's values. Raises `CheckpointError` for a file
    that is not valid.
    """
    path = Path(directory) / SCORER_FILE
    if path.is_file():
        try:
            return ScorerFile.model_validate_json(path.read_text(encoding="utf-8"))
        except (ValidationError, OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path} is not a valid scorer file: {error}") from error
    try:
        return ScorerFile(preprocess=_guess_preprocess(Path(directory)))
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


def _guess_preprocess(directory: Path) -> PreprocessConfig:
    image_size = read_json(directory / "config.json")["vision_config"]["image_size"]
    side = image_size[0] if isinstance(image_size, list) else image_size
    processor: dict[str, Any] = {}
    for name in _PROCESSOR_FILES:
        if (directory / name).is_file():
            data = read_json(directory / name)
            processor = data.get("image_processor", data)
            break
    default = PreprocessConfig()
    return PreprocessConfig(
        tile_size=side,
        min_tiles=processor.get("min_patches", default.min_tiles),
        max_tiles=processor.get("max_patches", default.max_tiles),
        mean=tuple(processor.get("image_mean", IMAGENET_MEAN)),
        std=tuple(processor.get("image_std", IMAGENET_STD)),
    )
