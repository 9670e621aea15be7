"""Images: checked and normalised once, kept by digest, and shown to models in messages.

Nothing is ever fetched from an address. A name is loaded when it is first used: Pillow and
LangChain take a while.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vprm_search.images.messages import (
        ImageIntake,
        image_message,
        reference_images,
        restore_images,
    )
    from vprm_search.images.normalise import (
        ImageLimits,
        image_from_base64,
        image_from_data_uri,
        normalise_image,
        open_rgb,
        pixel_digest,
    )
    from vprm_search.images.store import (
        DiskImageStore,
        ImageStore,
        LangGraphImageStore,
        MemoryImageStore,
    )

_HOMES = {
    "DiskImageStore": "store",
    "ImageIntake": "messages",
    "ImageLimits": "normalise",
    "ImageStore": "store",
    "LangGraphImageStore": "store",
    "MemoryImageStore": "store",
    "image_from_base64": "normalise",
    "image_from_data_uri": "normalise",
    "image_message": "messages",
    "normalise_image": "normalise",
    "open_rgb": "normalise",
    "pixel_digest": "normalise",
    "reference_images": "messages",
    "restore_images": "messages",
}

__all__ = [
    "DiskImageStore",
    "ImageIntake",
    "ImageLimits",
    "ImageStore",
    "LangGraphImageStore",
    "MemoryImageStore",
    "image_from_base64",
    "image_from_data_uri",
    "image_message",
    "normalise_image",
    "open_rgb",
    "pixel_digest",
    "reference_images",
    "restore_images",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
