"""The tiny world: rendered visual-maths problems and the two packaged models that solve them.

`world` draws problems with exact answers, `chat_model` is the packaged policy as a LangChain chat
model (`policy` without LangChain), and `weights` finds the policy and the process reward model.
How they were trained is a worked example of the repository, `examples/tiny_models`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vprm_search.tiny.chat_model import TinyChatModel
    from vprm_search.tiny.weights import weights_path
    from vprm_search.tiny.world import generate, render

_HOMES = {
    "TinyChatModel": "chat_model",
    "generate": "world",
    "render": "world",
    "weights_path": "weights",
}

__all__ = ["TinyChatModel", "generate", "render", "weights_path"]


def __getattr__(name: str) -> Any:
    """Load a name on first use, so that drawing problems loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
