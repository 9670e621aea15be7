"""InternVL in vLLM with this project's image rule: the tiles the in-process scorer makes.

vLLM's own class asks transformers' image processor for the tiles, which resizes with torchvision
instead of Pillow and needs processor files that a checkpoint may not have. Here the tiles come from
the very function that the in-process scorer uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image, new
from transformers import BatchFeature
from vllm.model_executor.models.interns1 import InternS1ForConditionalGeneration
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import ImageProcessorItems, MultiModalDataItems, MultiModalDataParser
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdate,
    PromptUpdateDetails,
)

from vprm_search_vllm.shared.images.normalise import normalise_image
from vprm_search_vllm.shared.scoring.families import (
    DEFAULT_FAMILY,
    SCORER_FILE,
    ScorerFile,
    read_scorer_file,
)
from vprm_search_vllm.shared.scoring.pixels import pixel_values
from vprm_search_vllm.shared.types import ImageData


class PrmImageParser(MultiModalDataParser):
    """Takes `ImageData` beside what vLLM takes; it is decoded only if its tiles are not known."""

    def _parse_image_data(self, data: Any) -> Any:
        if isinstance(data, list) and data and isinstance(data[0], ImageData):
            return ImageProcessorItems(data)
        return super()._parse_image_data(data)


class PrmImageInfo(BaseProcessingInfo):
    """What vLLM asks about the images of a checkpoint."""

    @cached_property
    def scorer_file(self) -> ScorerFile:
        """The checkpoint's `vprm.json`; of a model without one, its image rule alone.

        This class also serves policies, which have none and are never scored with:
        `PrmIOProcessor` reads the file itself and asks for it.
        """
        folder = Path(self.ctx.model_config.model)
        known = (folder / SCORER_FILE).is_file()
        return read_scorer_file(folder, None if known else DEFAULT_FAMILY)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Images without bound, nothing else."""
        return {"image": None}

    def get_data_parser(self) -> MultiModalDataParser:
        """Return the parser that knows `ImageData`."""
        return PrmImageParser(expected_hidden_size=self._get_expected_hidden_size())

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        """No option changes the tiles: the checkpoint's image rule is the only one."""
        return {}


class PrmDummyImages(BaseDummyInputsBuilder[PrmImageInfo]):
    """The largest image, with which vLLM measures memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """Return one placeholder per image."""
        token: str = self.info.scorer_file.layout.image_token
        return token * mm_counts.get("image", 0)

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return images with the most tiles."""
        rule = self.info.scorer_file.preprocess
        image = new("RGB", (rule.tile_size * rule.max_tiles, rule.tile_size), (255, 255, 255))
        return {"image": [image] * mm_counts.get("image", 0)}


class PrmImageProcessor(BaseMultiModalProcessor[PrmImageInfo]):
    """Images to tiles, and one placeholder token per image to the tokens of all its tiles."""

    def _apply_hf_processor_main(
        self, mm_items: MultiModalDataItems, hf_kwargs: Mapping[str, object]
    ) -> BatchFeature:
        images = mm_items["image"].get_all() if "image" in mm_items else []
        if not images:
            return BatchFeature()
        rule = self.info.scorer_file.preprocess
        tiles = [torch.from_numpy(pixel_values(_as_data(image), rule)) for image in images]
        layout = self.info.scorer_file.layout
        token = self.info.get_tokenizer().convert_tokens_to_ids(layout.image_token)
        values = torch.cat(tiles).to(self.info.ctx.model_config.dtype)
        return BatchFeature(
            {
                "pixel_values": values,
                "image_num_patches": torch.tensor([len(part) for part in tiles]),
                "image_token_id": torch.tensor(token),
            }
        )

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        counts = hf_inputs.get("image_num_patches", torch.empty(0))
        return {
            "pixel_values": MultiModalFieldConfig.flat_from_sizes("image", counts),
            "image_num_patches": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
            "image_token_id": MultiModalFieldConfig.shared("image", len(counts), keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        layout = self.info.scorer_file.layout
        token_id = self.info.get_tokenizer().convert_tokens_to_ids
        start, token, end = map(
            token_id, (layout.image_start, layout.image_token, layout.image_end)
        )
        counts = out_mm_kwargs.get_data().get("image_num_patches", torch.empty(0)).tolist()
        per_tile = self.info.get_hf_config().image_seq_length

        def expanded(index: int) -> PromptUpdateDetails:
            ids = [start, *([token] * (counts[index] * per_tile)), end]
            return PromptUpdateDetails.select_token_id(ids, token)

        return [PromptReplacement(modality="image", target=[token], replacement=expanded)]


@MULTIMODAL_REGISTRY.register_processor(
    PrmImageProcessor, info=PrmImageInfo, dummy_inputs=PrmDummyImages
)
class VprmInternVL(InternS1ForConditionalGeneration):
    """vLLM's native InternVL, its images cut by this project's rule."""


def _as_data(image: Any) -> ImageData:
    if isinstance(image, ImageData):
        return image
    if not isinstance(image, Image):
        raise TypeError(f"an image must be a picture, not {type(image).__name__}")
    return normalise_image(image)
