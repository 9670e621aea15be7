"""Whether a server was started so that its rows are the scores of the checkpoint."""

from __future__ import annotations

from typing import Any

from vprm_search_vllm import ARCHITECTURE
from vprm_search_vllm.shared.scoring.families import ScorerFile, find_family
from vprm_search_vllm.shared.scoring.pixels.tiles import PreprocessConfig
from vprm_search_vllm.shared.scoring.prompt.layout import PromptBuilder
from vprm_search_vllm.shared.scoring.prompt.marker_layout import MarkerBuilder

BACKBONES = ("internvl", "text")
METHOD = "from_2_way_softmax"


def check_served_as_needed(
    config: Any, file: ScorerFile, builder: PromptBuilder | MarkerBuilder, tokenizer: Any
) -> None:
    """Raise `ValueError` when the server would answer with other numbers than P('+').

    `config` is vLLM's model configuration; the checks name the option to start it with.
    """
    family = find_family(file.family)
    if family.readout != "token_pair" or family.backbone not in BACKBONES:
        raise ValueError(
            f"the family {family.name!r} ({family.backbone}, {family.readout}) is not served by "
            f"this plugin; it serves token pairs of {' and '.join(BACKBONES)} models"
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
    if getattr(hf_config, "method", None) != METHOD:
        raise ValueError(f"--hf-overrides must set method to {METHOD!r}")
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
