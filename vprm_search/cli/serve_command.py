"""The command that serves a reward model with vLLM: which options, and why each is there."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vprm_search.errors import CheckpointError, ConfigError

ARCHITECTURE = "VprmInternVLForConditionalGeneration"
PLUGIN = "vprm_search"
API_KEY_VARIABLE = "VLLM_API_KEY"
_NOWHERE = "no-media.invalid"  # a name that cannot resolve (RFC 2606): no URL is ever fetched
_SERVABLE = ("internvl", "text")


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What the user chose; None leaves the choice to vLLM.

    `gpu_memory` is the share of the GPU's memory vLLM takes, `tensor_parallel` the GPUs one copy
    of the model is spread over, `data_parallel` the copies, `max_images` the images of one problem.
    `all_routes` keeps vLLM's other HTTP routes, and `extra` goes to vLLM as it is.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    name: str = "prm"
    gpu_memory: float | None = None
    tensor_parallel: int = 1
    data_parallel: int = 1
    max_model_len: int | None = None
    max_images: int = 8
    dtype: str = "auto"
    enforce_eager: bool = False
    all_routes: bool = False
    extra: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ServeCommand:
    """A command with the environment variables it needs; the API key is one of them, not shown."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    def shell_text(self) -> str:
        """Return the command as a shell reads it."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " \\\n  ".join([*settings, shlex.join(self.argv[:5]), *_in_pairs(self.argv[5:])])


def serve_command(
    checkpoint: Path, options: ServeOptions, python: str = sys.executable
) -> ServeCommand:
    """Return the command that serves `checkpoint` with the vLLM of the interpreter `python`.

    Raises `CheckpointError` for a directory that cannot be served and `ConfigError` for a family
    whose score vLLM cannot compute.
    """
    layout, backbone = _servable(checkpoint)
    overrides: dict[str, Any] = {
        # score = lm_head['+'] - lm_head['-'], whose sigmoid is the softmax over the two words
        "classifier_from_token": [layout.minus_word, layout.plus_word],
        "method": "from_2_way_softmax",
    }
    if backbone == "internvl":
        overrides["architectures"] = [ARCHITECTURE]
    argv = [python, "-m", "vllm.entrypoints.cli.main", "serve", str(checkpoint.resolve())]
    argv += ["--host", options.host, "--port", str(options.port)]
    argv += ["--served-model-name", options.name]
    argv += ["--runner", "pooling", "--convert", "classify"]
    argv += ["--hf-overrides", json.dumps(overrides)]
    argv += ["--pooler-config", json.dumps({"task": "token_classify"})]
    argv += ["--io-processor-plugin", PLUGIN]
    argv += ["--middleware", "vprm_search_vllm.door.Door"]
    argv += ["--allowed-media-domains", _NOWHERE]
    argv += ["--dtype", options.dtype, "--enable-prefix-caching"]
    if backbone == "internvl":
        argv += ["--limit-mm-per-prompt", json.dumps({"image": options.max_images})]
    argv += _sizes(options)
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    }
    if options.all_routes:
        environment["VPRM_SEARCH_VLLM_ALL_ROUTES"] = "1"
    return ServeCommand((*argv, *options.extra), environment)


def _servable(checkpoint: Path) -> tuple[Any, str]:
    """Return the layout of a checkpoint and the kind of its model."""
    from vprm_search.scoring.families import find_family, read_json, read_scorer_file

    if not (checkpoint / "config.json").is_file():
        raise CheckpointError(
            f"{checkpoint} is no checkpoint directory (no config.json); give a local directory, "
            "models are never downloaded"
        )
    kind = read_json(checkpoint / "config.json").get("model_type")
    if kind == "internvl_chat":
        raise CheckpointError(
            f"{checkpoint} is in the original format, which needs remote code; convert it first: "
            f"vprm-search convert {shlex.quote(str(checkpoint))} OUT"
        )
    file = read_scorer_file(checkpoint)
    family = find_family(file.family)
    if family.readout != "token_pair" or family.backbone not in _SERVABLE:
        raise ConfigError(
            f"{checkpoint}: vLLM cannot score the family {family.name!r} ({family.backbone}, "
            f"{family.readout}); score it in this process"
        )
    if family.backbone == "internvl" and kind != "internvl":
        raise CheckpointError(f"{checkpoint} holds a {kind!r} model, needed is 'internvl'")
    return file.layout, family.backbone


def _sizes(options: ServeOptions) -> list[str]:
    argv: list[str] = []
    if options.gpu_memory is not None:
        argv += ["--gpu-memory-utilization", str(options.gpu_memory)]
    if options.tensor_parallel > 1:
        argv += ["--tensor-parallel-size", str(options.tensor_parallel)]
    if options.data_parallel > 1:
        # one HTTP process, so that an image is sent once and not once per process
        argv += ["--data-parallel-size", str(options.data_parallel), "--api-server-count", "1"]
    if options.max_model_len is not None:
        argv += ["--max-model-len", str(options.max_model_len)]
    if options.enforce_eager:
        argv += ["--enforce-eager"]
    return argv


def _in_pairs(argv: tuple[str, ...]) -> list[str]:
    """Return options with their values, one pair a line."""
    lines: list[list[str]] = []
    for word in argv:
        if word.startswith("--") or not lines:
            lines.append([])
        lines[-1].append(word)
    return [shlex.join(line) for line in lines]
