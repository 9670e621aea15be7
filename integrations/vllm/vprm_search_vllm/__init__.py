"""A vLLM plugin for step scores: one request carries a problem and all its candidate paths.

vLLM calls the two functions below, named as entry points, in each of its processes. Importing this
package loads nothing.
"""

from __future__ import annotations

import os
import secrets

__version__ = "0.1.0"

ARCHITECTURE = "VprmInternVLForConditionalGeneration"
"""Name it with `--hf-overrides '{"architectures": [...]}'` to get this package's image rule."""

KEY_VARIABLE = "VPRM_SEARCH_VLLM_KEY"
"""Names the variable with the key of image names, see `images.ImageNames`."""


def io_processor() -> str:
    """Return the class that serves `POST /pooling {"data": ...}` (vllm.io_processor_plugins)."""
    return "vprm_search_vllm.io_processor.StepScoreProcessor"


def register_model() -> None:
    """Make the architecture known to vLLM (vllm.general_plugins); it is loaded when first used.

    The first process of a server draws the key of image names where none is given: those that it
    starts inherit it, so all agree.
    """
    from vllm import ModelRegistry

    os.environ.setdefault(KEY_VARIABLE, secrets.token_hex(32))

    ModelRegistry.register_model(ARCHITECTURE, "vprm_search_vllm.model:VprmInternVL")
