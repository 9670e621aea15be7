"""The small files of a native checkpoint: model, generation, processor, tokenizer, scorer facts.

`vprm.json` holds the facts about a process reward model that its weights do not. Its schema is
`scoring.families.ScorerFile`; this room lies below scoring, so plain JSON is written here, and a
test reads it back with that class. Qwen2's tokenizer is kept as it is, InternLM2's is converted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vprm_search.checkpoints.original import LanguageShape, OriginalConfig, VisionShape
from vprm_search.checkpoints.sentencepiece_model import (
    differences,
    read_sentencepiece_model,
    sentencepiece_tokenizer,
)
from vprm_search.checkpoints.source import inside
from vprm_search.errors import CheckpointError, need
from vprm_search.records import read_json

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

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


# --- the tokenizer ---


SPECIAL = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 cuts a text before merging; a fact of its published tokenizer."""

_TOKENIZER_FILE, _CONFIG_FILE, _ADDED_FILE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
)
_KEPT_SETTINGS = (
    "bos_token",
    "eos_token",
    "pad_token",
    "unk_token",
    "additional_special_tokens",
    "model_max_length",
    "errors",
)
_INTERNLM2_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "</s>",
}
"""The defaults of InternLM2's tokenizer class; bos comes first."""


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """Files to write by name, the ids of `SPECIAL`, and name and id of what begins a text."""

    files: Mapping[str, bytes]
    special_ids: Mapping[str, int]
    begin: tuple[str, int] | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Made:
    """A `tokenizer.json`, the ids its added tokens must have, and what begins a text."""

    content: bytes
    added: Mapping[str, int]
    begin: str | None = None
    warnings: tuple[str, ...] = ()


def make_tokenizer(directory: Path, config: OriginalConfig) -> TokenizerFiles:
    """Make the tokenizer's files from those of an original checkpoint.

    Raises `CheckpointError` when a file is missing or damaged, when a special token or one of the
    words '+' and '-' is no token of its own, or when a token has no row in the model.
    """
    need("tokenizers", "local")
    settings = read_json(inside(directory, _CONFIG_FILE))
    internlm2 = config.language.kind == "internlm2"
    made = (_internlm2 if internlm2 else _qwen2)(directory, settings)
    ids = _check(made, config.language.vocab)
    prefix = "" if made.begin is None else "{{ '" + made.begin + "' }}"
    kept = _settings(settings, made, config)
    files = {
        _TOKENIZER_FILE: made.content,
        _CONFIG_FILE: _json(kept),
        "chat_template.jinja": (prefix + CHAT_TEMPLATE).encode(),
    }
    begin = None if made.begin is None else (made.begin, made.added[made.begin])
    return TokenizerFiles(files, ids, begin, made.warnings)


def _internlm2(directory: Path, settings: dict[str, Any]) -> _Made:
    from tokenizers import AddedToken

    model = read_sentencepiece_model(inside(directory, "tokenizer.model"))
    pieces = {piece.text: number for number, piece in enumerate(model.pieces)}
    added = _added_tokens(directory, settings)
    ids = {token.content: number for number, token in added.items()}
    named = [_name(settings.get(key, default)) for key, default in _INTERNLM2_TOKENS.items()]
    named += [_name(token) for token in settings.get("additional_special_tokens") or ()]
    for name in named:
        if name is not None and name not in ids:
            if name not in pieces:
                raise CheckpointError(f"{directory}: the special token {name!r} has no id")
            ids[name] = pieces[name]
            added[pieces[name]] = AddedToken(name, special=True, normalized=False)
    # the original class puts bos before every text unless told otherwise
    begin = named[0] if settings.get("add_bos_token", True) else None
    if settings.get("add_eos_token"):
        raise CheckpointError(f"{directory}: add_eos_token is set; scores would be read behind it")
    tokenizer = sentencepiece_tokenizer(model, added, begin)
    return _Made(_content(tokenizer), ids, begin or None, differences(model, added))


def _qwen2(directory: Path, settings: dict[str, Any]) -> _Made:
    path = inside(directory, _TOKENIZER_FILE)
    if path.is_file():
        listed = read_json(path).get("added_tokens") or ()
        return _Made(path.read_bytes(), {token["content"]: token["id"] for token in listed})
    vocab = read_json(inside(directory, "vocab.json"))
    try:
        rules = inside(directory, "merges.txt").read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory}: merges.txt cannot be read: {error}") from error
    added = _added_tokens(directory, settings)
    content = _content(qwen2_tokenizer(vocab, rules, added))
    return _Made(content, {token.content: number for number, token in added.items()})


def qwen2_tokenizer(
    vocab: Mapping[str, int], rules: Sequence[str], added: Mapping[int, AddedToken]
) -> Tokenizer:
    """Return the tokenizer of Qwen2's `vocab.json` and the lines of its `merges.txt`."""
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    pairs = [line.split(" ") for line in rules if line.strip() and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in pairs):
        raise CheckpointError("merges.txt holds a line that is not two tokens")
    try:
        tokenizer = Tokenizer(
            models.BPE(
                vocab=dict(vocab),
                merges=[(left, right) for left, right in pairs],
                continuing_subword_prefix="",
                end_of_word_suffix="",
            )
        )
    except Exception as error:  # the library raises bare exceptions
        raise CheckpointError(f"the tokenizer cannot be built: {error}") from error
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(
        add_prefix_space=False, trim_offsets=False, use_regex=False
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([added[number] for number in sorted(added)])
    return tokenizer


def _added_tokens(directory: Path, settings: dict[str, Any]) -> dict[int, AddedToken]:
    """Return by id the tokens of `added_tokens_decoder`, and those only `added_tokens.json` has."""
    from tokenizers import AddedToken

    try:
        found = {
            int(number): AddedToken(
                str(entry["content"]),
                special=bool(entry.get("special", False)),
                lstrip=bool(entry.get("lstrip", False)),
                rstrip=bool(entry.get("rstrip", False)),
                single_word=bool(entry.get("single_word", False)),
                normalized=False,
            )
            for number, entry in (settings.get("added_tokens_decoder") or {}).items()
        }
        ids = {token.content: number for number, token in found.items()}
        if (directory / _ADDED_FILE).is_file():
            for content, number in read_json(inside(directory, _ADDED_FILE)).items():
                if ids.setdefault(content, int(number)) != number:
                    raise ValueError(f"{content!r} has the ids {ids[content]} and {number}")
                found.setdefault(number, AddedToken(content, special=True, normalized=False))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{directory}: the added tokens cannot be read: {error}") from error
    return found


def _check(made: _Made, vocab_size: int) -> dict[str, int]:
    """Load the tokenizer and return the ids of `SPECIAL`."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_buffer(made.content)
    except Exception as error:  # the library raises bare exceptions
        raise CheckpointError(f"the tokenizer cannot be built: {error}") from error
    vocab: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    moved = [name for name, number in made.added.items() if vocab.get(name) != number]
    if moved:
        raise CheckpointError(f"the tokenizer moves the ids of {', '.join(map(repr, moved[:3]))}")
    ids = {}
    for word in (*SPECIAL, "+", "-"):
        encoded = tokenizer.encode(word, add_special_tokens=False).ids
        if word in SPECIAL and encoded != [made.added.get(word)]:
            raise CheckpointError(f"the tokenizer has no special token {word!r}")
        if word not in vocab:
            raise CheckpointError(f"the tokenizer has no token {word!r}, which the score needs")
        ids[word] = vocab[word]
    largest = max(vocab.values())
    if largest >= vocab_size:
        raise CheckpointError(
            f"the tokenizer has {largest + 1} tokens, the model's embedding {vocab_size} rows"
        )
    return {word: ids[word] for word in SPECIAL}


def _settings(settings: dict[str, Any], made: _Made, config: OriginalConfig) -> dict[str, Any]:
    kept = {key: settings[key] for key in _KEPT_SETTINGS if key in settings}
    if config.language.kind == "internlm2":
        kept = _INTERNLM2_TOKENS | {key: value for key, value in kept.items() if value is not None}
    extra = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        # the processor wants one; vLLM uses it as a pattern, so names with bars do not serve
        "video_token": "<video>" if "<video>" in made.added else "<IMG_CONTEXT>",
    }
    return kept | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "InternVLProcessor",
        "clean_up_tokenization_spaces": False,
        "extra_special_tokens": extra,
    }


def _name(token: Any) -> str | None:
    """Return the text of a token given as text or as a dict with `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _content(tokenizer: Tokenizer) -> bytes:
    return _json(json.loads(tokenizer.to_str()))


def _json(data: Any) -> bytes:
    return (json.dumps(data, ensure_ascii=False, indent=1) + "\n").encode("utf-8")
