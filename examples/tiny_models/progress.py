"""Training progress: one printed line and one JSON line per report, with smoothed losses."""

from __future__ import annotations

import json
import time
from pathlib import Path

SMOOTHING = 0.95


class Progress:
    """Smooths losses, prints them now and then, and appends every report to ``metrics.jsonl``."""

    def __init__(self, folder: Path, stage: str, steps: int, every: int = 25) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        self._stage, self._steps, self._every = stage, steps, every
        self._smooth: dict[str, float] = {}
        self._started = time.monotonic()

    def add(self, step: int, **losses: float) -> None:
        """Note the losses of one step (counted from 0) and report if it is time to."""
        for name, value in losses.items():
            old = self._smooth.get(name, value)
            self._smooth[name] = SMOOTHING * old + (1 - SMOOTHING) * value
        if (step + 1) % self._every == 0:
            self.report(step, self._smooth)

    def report(self, step: int, figures: dict[str, float]) -> None:
        """Print and store figures at a step."""
        seconds = time.monotonic() - self._started
        rounded = {name: round(value, 4) for name, value in figures.items()}
        shown = "  ".join(f"{name} {value:g}" for name, value in rounded.items())
        print(f"{self._stage} {step + 1}/{self._steps}  {seconds:.0f} s  {shown}", flush=True)
        record = {"stage": self._stage, "step": step + 1, "seconds": round(seconds, 1), **rounded}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
