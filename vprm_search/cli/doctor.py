"""`vprm-search doctor`: what is installed, what is missing, and how to get it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import asdict, dataclass, field

import typer
from rich.table import Table
from rich.text import Text

from vprm_search.cli import console, options
from vprm_search.errors import MissingDependencyError, VprmError
from vprm_search.report.view import printable

BASE = (
    "langgraph",
    "langchain-core",
    "pydantic",
    "pillow",
    "networkx",
    "mpmath",
    "httpx",
    "typer",
    "rich",
)
EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "local": (
        ("torch", "transformers", "safetensors", "tokenizers", "numpy"),
        "reward models in this process, the tiny models, the demo",
    ),
    "agents": (("langchain",), "chat models by provider (--policy PROVIDER:MODEL), agents"),
    "openai": (("langchain-openai",), "OpenAI and OpenAI-compatible servers"),
    "sqlite": (("langgraph-checkpoint-sqlite",), "searches that survive a restart"),
    "parquet": (("pyarrow",), "problem sets in parquet or arrow files"),
    "plots": (("matplotlib",), "plots of vprm-search compare, evaluate and calibrate"),
    "xlsx": (("xlsxwriter",), "result files of vprm-search evaluate as xlsx"),
    "server": (
        ("starlette", "uvicorn", "pyyaml"),
        "vprm-search proxy, for OpenAI clients",
    ),
    "mcp": (("mcp",), "vprm-search mcp: tools for MCP clients"),
    "vllm": (("vllm",), "vprm-search serve: a reward model as a vLLM server"),
    "gpu": (("accelerate", "bitsandbytes"), "models over several GPUs, or in 4 or 8 bits"),
    "calibration": (("numpy", "scipy", "scikit-learn"), "vprm-search calibrate"),
}
VARIABLES = ("VPRM_SEARCH_CACHE", "VPRM_SEARCH_TINY_WEIGHTS", "LANGGRAPH_STRICT_MSGPACK")


@dataclass(frozen=True, slots=True)
class Health:
    """What was found. `broken` holds what must be repaired, `advice` what could be added."""

    versions: dict[str, str | None]
    devices: list[str]
    weights: dict[str, str]
    folders: dict[str, str]
    environment: dict[str, str]
    broken: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)


def doctor(json: options.AsJson = False) -> None:
    """Say what is installed, what is missing, and how to get it.

    Exits with 1 when a base library or a packaged model is missing.
    """
    health = examine()
    if json:
        console.print_json(asdict(health))
    else:
        _show(health)
    if health.broken:
        raise typer.Exit(console.FAILED)


def examine() -> Health:
    """Look at libraries, devices, weights and folders; nothing is changed or fetched."""
    from vprm_search.images.store import cache_folder

    versions: dict[str, str | None] = {
        "vprm-search": _version("vprm-search"),
        "python": platform.python_version(),
    }
    health = Health(
        versions=versions,
        devices=_devices(),
        weights={},
        folders={"images": str(cache_folder("images"))},
        environment={name: os.environ[name] for name in VARIABLES if name in os.environ},
    )
    for name in BASE:
        versions[name] = _version(name)
        if versions[name] is None:
            health.broken.append(f"{name} is missing: pip install --force-reinstall vprm-search")
    for extra, (names, purpose) in EXTRAS.items():
        versions.update({name: _version(name) for name in names})
        if any(versions[name] is None for name in names):
            health.advice.append(f"for {purpose}: pip install 'vprm-search[{extra}]'")
    _weigh(health)
    return health


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    from vprm_search.scoring.engine import describe_devices

    try:
        return describe_devices()
    except MissingDependencyError:
        return []


def _weigh(health: Health) -> None:
    from vprm_search.tiny.weights import WEIGHT_NAMES, weights_path

    for name in WEIGHT_NAMES:
        try:
            path = weights_path(name)
        except VprmError as error:
            health.broken.append(str(error))
            continue
        size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
        health.weights[name] = f"{size / 1e6:.1f} MB"


def _show(health: Health) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, version in health.versions.items():
        missing = Text("not installed", style="yellow")
        table.add_row(name, missing if version is None else Text(version))
    table.add_row("", "")
    table.add_row("devices", Text("\n".join(health.devices) or "none: torch is not installed"))
    weights = "\n".join(f"{name}: {size}" for name, size in health.weights.items())
    table.add_row("tiny models", Text(weights or "none"))
    for name, value in (*health.folders.items(), *health.environment.items()):
        table.add_row(name, Text(printable(value)))
    console.OUT.print(table)
    for line in health.broken:
        console.OUT.print(Text.assemble(("broken: ", "bold red"), printable(line)), soft_wrap=True)
    for line in health.advice:
        console.OUT.print(Text.assemble(("add: ", "bold"), printable(line)), soft_wrap=True)
    if not health.broken:
        console.OUT.print(Text("Everything needed is there.", style="green"))
