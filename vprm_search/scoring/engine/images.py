"""Images to language-model embeddings: every image encoded once and kept while there is room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vprm_search.errors import ImageError
from vprm_search.scoring.engine.checkpoint import PrmCheckpoint
from vprm_search.scoring.engine.forward import ScoringMeter, TokenBatcher
from vprm_search.scoring.engine.token_tree import TokenPath
from vprm_search.scoring.pixels import (
    Grid,
    PixelBudget,
    PreprocessConfig,
    image_grid,
    pixel_patches,
    pixel_values,
    token_positions,
)
from vprm_search.scoring.prompt.layout import ScoringPrompt
from vprm_search.scoring.reasons import BAD_IMAGE, BAD_INPUT, OUT_OF_MEMORY
from vprm_search.types import ImageData

_TILES_PER_PASS = 32
_SIZES_REMEMBERED = 50_000


class ImageEncoder:
    """Encodes images with the vision model, each once while there is room, and only when needed.

    Embeddings are kept by image digest; how many tokens an image has is remembered much longer, so
    that an image whose keys and values are in the prefix cache need not be encoded again. What one
    step encodes stays until the next one begins. Images of models that read text only are refused
    by a value.

    Args:
        checkpoint: the model.
        meter: counts what is encoded.
        cache_tokens: bound of the embeddings kept between steps, in image tokens.
        make_room: frees memory when it runs out; False when there was nothing to free. After that
            fewer tiles are encoded at once, and an image of which one tile does not fit has failed.
    """

    def __init__(
        self,
        checkpoint: PrmCheckpoint,
        meter: ScoringMeter,
        cache_tokens: int,
        make_room: Callable[[], bool],
    ) -> None:
        self._checkpoint = checkpoint
        self._meter = meter
        self._cache_tokens = cache_tokens
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._sizes: dict[str, tuple[int, Grid | None]] = {}
        self._step: dict[str, Tensor | str] = {}
        self._encoded: dict[str, int] = {}
        self._batcher = TokenBatcher(_TILES_PER_PASS, make_room)

    def begin_step(self) -> None:
        """Let go of what the last step encoded, but for what is cached."""
        self._step.clear()
        self._encoded.clear()

    def tokens(self, image: ImageData) -> int | str:
        """Return the tokens of an image, or why it cannot be used."""
        if image.digest not in self._sizes:
            found = self._feature(image)
            if isinstance(found, str):
                return found
        return self._sizes[image.digest][0]

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
        """Return how many of these images this step encoded, each to the first who asks."""
        return sum(self._encoded.pop(image.digest, 0) for image in images)

    def placed(self, prompt: ScoringPrompt, images: Sequence[ImageData]) -> ScoringPrompt:
        """Return a prompt with its position ids, for models that place image tokens in a grid.

        `images` are those of the prompt's spans.
        """
        rule = self._checkpoint.preprocess
        if not images or not isinstance(rule, PixelBudget):
            return prompt
        grids = [
            self._sizes.get(image.digest, (0, None))[1] or image_grid(image, rule)
            for image in images
        ]
        positions = token_positions(len(prompt.ids), prompt.image_spans, grids)
        return replace(prompt, positions=positions)

    def _feature(self, image: ImageData) -> Tensor | str:
        """Return an image's `[tokens, hidden]` embeddings, or why there are none."""
        found = self._step.get(image.digest)
        if found is not None:
            return found
        found = self._cache.get(image.digest)
        if found is None:
            found = self._encode(image)
            self._encoded[image.digest] = int(isinstance(found, Tensor))
        self._step[image.digest] = found
        if isinstance(found, Tensor):
            self._remember(image.digest, found)
        return found

    def _remember(self, digest: str, features: Tensor) -> None:
        self._sizes.setdefault(digest, (len(features), None))
        if len(self._sizes) > _SIZES_REMEMBERED:
            self._sizes.pop(next(iter(self._sizes)))
        self._cache[digest] = features
        self._cache.move_to_end(digest)
        while self._cache and sum(map(len, self._cache.values())) > self._cache_tokens:
            self._cache.popitem(last=False)

    @torch.inference_mode()  # no activation is kept for a gradient
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
        self._sizes[image.digest] = len(found), grid
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
