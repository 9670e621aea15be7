"""What a client of a scoring server has sent so far, counted where it is sent."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, fields


@dataclass(slots=True)
class VllmMeter:
    """Running totals of one client, over all threads.

    `requests` are POST requests, `retries` those among them that repeat a
    failed one. `bytes_sent` are bytes of request bodies, `image_bytes_sent` the PNG bytes among
    them (before base64). `images_sent` counts images sent with their pixels, `images_resent` those
    among them the server had been sent before. `steps_filled` are rows that the server's prefix
    cache left out and an earlier score filled, `paths_reasked` the paths asked again for such
    rows. `splits` counts requests cut in two because the server refused them as a whole,
    `server_waits` the times a lost server was waited for.
    """

    requests: int = 0
    retries: int = 0
    bytes_sent: int = 0
    image_bytes_sent: int = 0
    images_sent: int = 0
    images_resent: int = 0
    steps_filled: int = 0
    paths_reasked: int = 0
    splits: int = 0
    server_waits: int = 0
    seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, **amounts: float) -> None:
        """Add to several totals at once; safe from any thread."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)

    def to_json(self) -> dict[str, float]:
        """Return the totals as plain JSON."""
        with self._lock:
            names = [f.name for f in fields(self) if not f.name.startswith("_")]
            return {name: getattr(self, name) for name in names}
