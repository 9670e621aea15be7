"""Images to language-model embeddings: every image encoded once and kept while there is room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import Tensor

from vprm_search.errors import ImageError
from vprm_search.scoring.batching import TokenBatcher
from vprm_search.scoring.checkpoint import PrmCheckpoint
from vprm_search.scoring.meter import ScoringMeter
from vprm_search.scoring.preprocess import pixel_values
from vprm_search.scoring.reasons import BAD_IMAGE, OUT_OF_MEMORY
from vprm_search.scoring.token_tree import TokenPath
from vprm_search.types import ImageData

_TILES_PER_PASS = 32


class ImageFeatures:
    """Encodes images with the vision model and keeps the latest results by image digest.

    `kept_tokens` bounds what is kept between calls, in image tokens; images that one call needs are
    never dropped during that call.
    """

    def __init__(self, checkpoint: PrmCheckpoint, meter: ScoringMeter, kept_tokens: int) -> None:
        self._checkpoint = checkpoint
        self._meter = meter
        self._kept_tokens = kept_tokens
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._batcher = TokenBatcher(_TILES_PER_PASS)

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

    def _encode(self, image: ImageData) -> Tensor | str:
        try:
            values = pixel_values(image, self._checkpoint.preprocess)
        except ImageError as error:
            return f"{BAD_IMAGE}: image {image.digest} cannot be used: {error}"
        tiles = torch.from_numpy(values)
        # a tile stands for one token, so that tiles are batched and halved like tokens
        each = [TokenPath(tile, (0,)) for tile in range(len(tiles))]
        parts = self._batcher.run(each, lambda chosen: list(self._forward(tiles[chosen])))
        done = [part for part in parts if part is not None]
        if len(done) < len(parts):
            return f"{OUT_OF_MEMORY}: image {image.digest} does not fit into memory, even one tile"
        self._meter.images_encoded += 1
        self._meter.tiles_encoded += len(tiles)
        return torch.cat(done)

    def _forward(self, tiles: Tensor) -> Tensor:
        """Return `[tiles, tokens per tile, hidden]`."""
        model = self._checkpoint.model
        values = tiles.to(self._checkpoint.device, model.dtype)
        features: Tensor = model.get_image_features(
            pixel_values=values,
            vision_feature_layer=model.config.vision_feature_layer,
            vision_feature_select_strategy=model.config.vision_feature_select_strategy,
            return_dict=True,
        ).pooler_output
        return features
