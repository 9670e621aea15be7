"""`vprm.json`: the facts about a process reward model that its weights do not hold.

The schema is `vprm_search.scoring.ScorerFile`; this room lies below scoring, so plain JSON is
written here, and a test reads it back with that class.
"""

from __future__ import annotations

from typing import Any

from vprm_search.checkpoints.native_config import IMAGENET_MEAN, IMAGENET_STD
from vprm_search.checkpoints.original_config import OriginalConfig

SCORER_FILE = "vprm.json"
SYSTEM_MESSAGE = (
    "你是书生·万象，英文名是InternVL，"
    "是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
"""The system message of the `internvl2_5` template, in force when the original code scores."""

MAX_TILES = 12
"""VisualPRM's model card tiles with 12; `max_dynamic_patch` in config.json is the training's."""

MAX_STEPS = 12
"""`select_best_response` merges a solution into at most so many steps."""


def scorer_facts(
    config: OriginalConfig, begin_token: str | None, max_tiles: int, family: str | None
) -> dict[str, Any]:
    """Return the content of `vprm.json`.

    With a `family`, only its name: layout and image rule are that family's. Without one they are
    VisualPRM's, with `begin_token` written before everything (InternLM2's tokenizer does so).
    """
    if family is not None:
        return {"version": 1, "family": family}
    system = config.system_message
    return {
        "version": 1,
        "layout": {
            "system_prompt": SYSTEM_MESSAGE if system is None else system,
            "plus_word": "+",
            "minus_word": "-",
            "begin_token": begin_token,
            "max_steps": MAX_STEPS,
        },
        "preprocess": {
            "tile_size": config.vision.image_size,
            "min_tiles": min(config.min_tiles, max_tiles),
            "max_tiles": max_tiles,
            "thumbnail": config.thumbnail,
            "mean": list(IMAGENET_MEAN),
            "std": list(IMAGENET_STD),
        },
    }
