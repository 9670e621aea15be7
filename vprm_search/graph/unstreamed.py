"""Keep what the models of a search say to themselves out of the user's message stream."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from langchain_core.runnables.config import ensure_config, patch_config, var_child_runnable_config
from langgraph.constants import TAG_NOSTREAM


@contextlib.contextmanager
def unstreamed() -> Iterator[None]:
    """Run a block whose model calls do not show up in `stream_mode="messages"`.

    Calls inherit the tag from their context, so policies and scorers need not know of it.
    """
    config = ensure_config()
    tags = [*(config.get("tags") or []), TAG_NOSTREAM]
    token = var_child_runnable_config.set({**patch_config(config), "tags": tags})
    try:
        yield
    finally:
        var_child_runnable_config.reset(token)
