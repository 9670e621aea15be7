"""Images to language-model embeddings: every image encoded once and kept while there is room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vprm_search.errors import ImageError
from vprm_search.scoring.engine.checkpoint import PrmCheckpoint
from vprm_search.scoring.engine.forward import ScoringMeter, TokenBatcher
from vprm_search.scoring.engine.token_tree import TokenPath
from vprm_search.scoring.pixels.patches import (
    Grid,
    PixelBudget,
    image_grid,
    pixel_patches,
    token_positions,
)
from vprm_search.scoring.pixels.tiles import PreprocessConfig, pixel_values
from vprm_search.scoring.prompt.layout import ScoringPrompt
from vprm_search.scoring.reasons import BAD_IMAGE, BAD_INPUT, OUT_OF_MEMORY
from vprm_search.types import ImageData

_TILES_PER_PASS = 32
_GRIDS_KEPT = 65_536


class ImageFeatures:
    """Encodes images with the vision model and keeps the latest results by image digest.

    `kept_tokens` bounds what is kept between calls, in image tokens; images that one call needs are
    never dropped during that call. Images of models that read text only are refused by a value.
    """

    def __init__(self, checkpoint: PrmCheckpoint, meter: ScoringMeter, kept_tokens: int) -> None:
        self._checkpoint = checkpoint
        self._meter = meter
        self._kept_tokens = kept_tokens
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._batcher = TokenBatcher(_TILES_PER_PASS)
        self._grids: OrderedDict[str, Grid] = OrderedDict()

    def encode(self, images: Iterable[ImageData]) -> dict[str, Tensor | str]:
        """Return by digest each image's `[tokens, hidden]` embeddings, or why there are none."""
        wanted = {image.digest: image for image in images}
        found: dict[str, Tensor | str] = {}
        for digest, image in wanted.items():
            if digest in self._kept:
                self._kept.move_to_end(digest)
                found[digest] = self._kept[digest]
            else:
                found[digest] = self._encode(image)
        for digest, result in found.items():
            if isinstance(result, Tensor):
                self._kept[digest] = result
        while self._kept and sum(len(t) for t in self._kept.values()) > self._kept_tokens:
            self._kept.popitem(last=False)
        return found

    def placed(self, prompt: ScoringPrompt, images: Sequence[ImageData]) -> ScoringPrompt:
        """Return a prompt with its position ids, for models that place image tokens in a grid.

        `images` are those of the prompt's spans.
        """
        rule = self._checkpoint.preprocess
        if not images or not isinstance(rule, PixelBudget):
            return prompt
        grids = [self._grids.get(image.digest) or image_grid(image, rule) for image in images]
        positions = token_positions(len(prompt.ids), prompt.image_spans, grids)
        return replace(prompt, positions=positions)

    def _encode(self, image: ImageData) -> Tensor | str:
        rule = self._checkpoint.preprocess
        if rule is None:
            return (
                f"{BAD_INPUT}: reward models of the family {self._checkpoint.family.name!r} read "
                "text only; score the problem with a multimodal one"
            )
        try:
            if isinstance(rule, PixelBudget):
                return self._encode_patches(image, rule)
            return self._encode_tiles(image, rule)
        except ImageError as error:
            return f"{BAD_IMAGE}: image {image.digest} cannot be used: {error}"

    def _encode_tiles(self, image: ImageData, rule: PreprocessConfig) -> Tensor | str:
        tiles = torch.from_numpy(pixel_values(image, rule))
        # a tile stands for one token, so that tiles are batched and halved like tokens
        each = [TokenPath(tile, (0,)) for tile in range(len(tiles))]
        parts = self._batcher.run(each, lambda chosen: list(self._tiles(tiles[chosen])))
        done = [part for part in parts if part is not None]
        if len(done) < len(parts):
            return f"{OUT_OF_MEMORY}: image {image.digest} does not fit into memory, even one tile"
        self._meter.images_encoded += 1
        self._meter.tiles_encoded += len(tiles)
        return torch.cat(done)

    def _encode_patches(self, image: ImageData, rule: PixelBudget) -> Tensor | str:
        values, grid = pixel_patches(image, rule)
        patches = torch.from_numpy(values)
        found = self._batcher.run(
            [TokenPath(image.digest, (0,))], lambda _: [self._patches(patches, grid, rule)]
        )[0]
        if found is None:
            return f"{OUT_OF_MEMORY}: image {image.digest} does not fit into memory"
        self._grids[image.digest] = grid
        if len(self._grids) > _GRIDS_KEPT:
            self._grids.popitem(last=False)
        self._meter.images_encoded += 1
        self._meter.tiles_encoded += 1
        return found

    def _patches(self, patches: Tensor, grid: Grid, rule: PixelBudget) -> Tensor:
        """Return `[tokens, hidden]`."""
        model = self._checkpoint.model
        rows, columns = (side * rule.merge_size for side in grid)
        where = self._vision_device()
        features: Tensor = model.get_image_features(
            pixel_values=patches.to(where, model.dtype),
            image_grid_thw=torch.tensor([[1, rows, columns]], device=where),
            return_dict=True,
        ).pooler_output[0]
        return features

    def _tiles(self, tiles: Tensor) -> Tensor:
        """Return `[tiles, tokens per tile, hidden]`."""
        model = self._checkpoint.model
        features: Tensor = model.get_image_features(
            pixel_values=tiles.to(self._vision_device(), model.dtype),
            vision_feature_layer=model.config.vision_feature_layer,
            vision_feature_select_strategy=model.config.vision_feature_select_strategy,
            return_dict=True,
        ).pooler_output
        return features

    def _vision_device(self) -> torch.device:
        """Return where the vision model is: with a device map not always where the words are."""
        inner = self._checkpoint.model.model
        vision = getattr(inner, "vision_tower", None) or inner.visual
        weight: Tensor = next(vision.parameters())
        return self._checkpoint.device if weight.device.type == "meta" else weight.device


_SIZES_KEPT = 50_000  # fewer than the grids `ImageFeatures` remembers, in the same order


class ImageBook:
    """Remembers how many tokens each image has, so that a kept image need not be encoded again.

    What one turn encodes stays until the next one begins, whatever `ImageFeatures` keeps.
    """

    def __init__(self, images: ImageFeatures, meter: ScoringMeter) -> None:
        self._images = images
        self._meter = meter
        self._sizes: dict[str, int] = {}
        self._found: dict[str, Tensor | str] = {}
        self._encoded: dict[str, int] = {}

    def begin_turn(self) -> None:
        """Let go of what the last turn encoded."""
        self._found.clear()
        self._encoded.clear()

    def tokens(self, image: ImageData) -> int | str:
        """Return the tokens of an image, or why it cannot be used."""
        size = self._sizes.get(image.digest)
        if size is not None:
            return size
        found = self._feature(image)
        if isinstance(found, str):
            return found
        self._sizes[image.digest] = len(found)
        if len(self._sizes) > _SIZES_KEPT:
            self._sizes.pop(next(iter(self._sizes)))
        return len(found)

    def features(self, images: Sequence[ImageData]) -> Tensor | str | None:
        """Return all images' embeddings, `[tokens, hidden]`, or why not; None without images."""
        parts = []
        for image in images:
            found = self._feature(image)
            if isinstance(found, str):
                return found
            parts.append(found)
        return torch.cat(parts) if parts else None

    def take_encoded(self, images: Sequence[ImageData]) -> int:
        """Return how many of these images this turn encoded, each to the first who asks."""
        return sum(self._encoded.pop(image.digest, 0) for image in images)

    def _feature(self, image: ImageData) -> Tensor | str:
        found = self._found.get(image.digest)
        if found is None:
            before = self._meter.images_encoded
            found = self._found[image.digest] = self._images.encode([image])[image.digest]
            self._encoded[image.digest] = self._meter.images_encoded - before
        return found
