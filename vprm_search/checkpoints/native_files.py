"""The JSON files of a native checkpoint: model, generation, processor, and what a scorer needs.

`vprm.json` holds the facts about a process reward model that its weights do not. Its schema is
`scoring.families.ScorerFile`; this room lies below scoring, so plain JSON is written here, and a
test reads it back with that class.
"""

from __future__ import annotations

from typing import Any

from vprm_search.checkpoints.config import LanguageShape, OriginalConfig, VisionShape

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
TRANSFORMERS_VERSION = "5.2.0"
"""The oldest release that loads these files without more ado.

A tokenizer of more than 100,000 tokens beside a config without this entry is reported by
transformers as one with a wrong regular expression, which it is not.
"""
_BICUBIC = 3  # PIL.Image.Resampling.BICUBIC

SCORER_FILE = "vprm.json"
SYSTEM_MESSAGE = (
    "你是书生·万象，英文名是InternVL，"
    "是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
"""The system message of the `internvl2_5` template, in force when the original code scores."""

DEFAULT_FAMILY = "visualprm"
FAMILIES = ("dreamprm-1.5", "mm-prm", DEFAULT_FAMILY)
"""The rows of `scoring.families` whose weights are InternVL's; a test compares them."""

MAX_TILES = 12
"""VisualPRM's model card tiles with 12; `max_dynamic_patch` in config.json is the training's."""

MAX_STEPS = 12
"""`select_best_response` merges a solution into at most so many steps."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] in ('image', 'image_url') %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The `internvl2_5` conversation; one `<IMG_CONTEXT>` stands for an image until it is expanded."""


def model_config(
    config: OriginalConfig, dtype: str, ids: dict[str, int], begin: int | None
) -> dict[str, Any]:
    """Return `config.json`; `ids` are those of the special tokens, `begin` begins a text."""
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "transformers_version": TRANSFORMERS_VERSION,
        "dtype": dtype,
        "downsample_ratio": config.downsample_ratio,
        "image_seq_length": config.tokens_per_tile,
        "image_token_id": ids["<IMG_CONTEXT>"],
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "text_config": _text_config(config.language, dtype, ids["<|im_end|>"], begin),
        "vision_config": _vision_config(config.vision, dtype),
    }


def generation_config(ids: dict[str, int], begin: int | None) -> dict[str, Any]:
    """Return `generation_config.json`: an answer ends at `<|im_end|>`."""
    end = {"eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|im_end|>"]}
    return end if begin is None else end | {"bos_token_id": begin}


def processor_config(config: OriginalConfig, max_tiles: int) -> dict[str, Any]:
    """Return `processor_config.json` with ImageNet's mean and deviation.

    transformers' own defaults are CLIP's, which move the scores.
    """
    side = config.vision.image_size
    shared = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "resample": _BICUBIC,
        "rescale_factor": 1 / 255,
        "size": {"height": side, "width": side},
    }
    tiles = {
        "image_processor_type": "GotOcr2ImageProcessor",
        "crop_to_patches": True,
        "min_patches": config.min_tiles,
        "max_patches": max_tiles,
    }
    # the processor of transformers and vLLM wants one, though no video is ever sent
    video = {"video_processor_type": "InternVLVideoProcessor", "do_sample_frames": False}
    return {
        "processor_class": "InternVLProcessor",
        "image_seq_length": config.tokens_per_tile,
        "image_processor": shared | tiles,
        "video_processor": shared | video,
    }


def scorer_facts(
    config: OriginalConfig, begin_token: str | None, max_tiles: int, family: str | None
) -> dict[str, Any]:
    """Return the content of `vprm.json`.

    With another `family`, only its name: layout and image rule are that family's. VisualPRM's are
    written out, with `begin_token` written before everything (InternLM2's tokenizer does so).
    """
    if family not in (None, DEFAULT_FAMILY):
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


def _vision_config(vision: VisionShape, dtype: str) -> dict[str, Any]:
    return {
        "model_type": "internvl_vision",
        "dtype": dtype,
        "hidden_size": vision.hidden,
        "num_hidden_layers": vision.layers,
        "num_attention_heads": vision.heads,
        "intermediate_size": vision.intermediate,
        "image_size": [vision.image_size, vision.image_size],
        "patch_size": [vision.patch_size, vision.patch_size],
        "attention_bias": vision.qkv_bias,
        "use_qk_norm": vision.qk_norm,
        "norm_type": vision.norm_type,
        "layer_norm_eps": vision.norm_eps,
        "hidden_act": vision.activation,
        "attention_dropout": 0.0,
        "hidden_dropout_prob": 0.0,
        "projection_dropout": 0.0,
        "use_absolute_position_embeddings": True,
        "use_mask_token": False,
        "use_mean_pooling": True,  # this leaves out a last norm, which the original has not either
    }


def _text_config(
    language: LanguageShape, dtype: str, end: int, begin: int | None
) -> dict[str, Any]:
    linear = {"rope_type": "linear", "factor": language.linear_rope}
    scaling = None if language.linear_rope is None else linear
    rope = (scaling or {"rope_type": "default"}) | {"rope_theta": language.rope_theta}
    shared = {
        "dtype": dtype,
        "hidden_size": language.hidden,
        "num_hidden_layers": language.layers,
        "num_attention_heads": language.heads,
        "num_key_value_heads": language.kv_heads,
        "head_dim": language.head_dim,
        "intermediate_size": language.intermediate,
        "vocab_size": language.vocab,
        "hidden_act": language.activation,
        "rms_norm_eps": language.norm_eps,
        "max_position_embeddings": language.max_positions,
        "rope_parameters": rope,  # transformers 5 reads this,
        "rope_theta": language.rope_theta,  # 4.x only these two, and has its own defaults
        "rope_scaling": scaling,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": begin,
        "eos_token_id": end,
        "pad_token_id": None,
    }
    if language.kind == "internlm2":
        own = {"model_type": "llama", "attention_bias": language.bias, "mlp_bias": False}
    else:
        own = {"model_type": "qwen2", "use_sliding_window": False}
    return shared | own
