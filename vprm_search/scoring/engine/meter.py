"""What scoring has cost so far, counted where the work is done."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class ScoringMeter:
    """Running totals of one scorer.

    `tokens_requested` is what one forward pass per path would compute, `tokens_computed` what was
    computed; `seconds` is wall time inside the scorer.
    """

    requests: int = 0
    steps: int = 0
    forward_passes: int = 0
    tokens_requested: int = 0
    tokens_computed: int = 0
    images_encoded: int = 0
    tiles_encoded: int = 0
    out_of_memory: int = 0
    seconds: float = 0.0

    def to_json(self) -> dict[str, float]:
        """Return the totals as plain JSON."""
        return asdict(self)
