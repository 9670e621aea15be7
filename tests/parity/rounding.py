"""How far half precision moves scores: what `scoring.parity.TOLERANCES` rests on.

python -m tests.parity.rounding
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from tests.checkpoints.original_layout import VERSIONS, write_original
from vprm_search.checkpoints import convert_checkpoint
from vprm_search.scoring.parity import parity_cases
from vprm_search.scoring.transformers_scorer import TransformersScorer
from vprm_search.tiny.weights import weights_path


def scores(checkpoint: Path, dtype: str) -> list[float | None]:
    """Return P('+') of every step of the cases, on the CPU."""
    scorer = TransformersScorer.from_pretrained(checkpoint, dtype=dtype, device="cpu")
    results = asyncio.run(scorer.score([case.request() for case in parity_cases()]))
    return [score.value for result in results for score in result.scores]


def main() -> None:
    """Print the differences of float16 and bfloat16 to float32, per checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = {"packaged": weights_path("prm")}
        for name in ("v1.0", "v1.1"):
            source = write_original(Path(folder) / f"original-{name}", VERSIONS[name])
            convert_checkpoint(source, Path(folder) / name)
            checkpoints[f"random {name}"] = Path(folder) / name
        for name, checkpoint in checkpoints.items():
            exact = scores(checkpoint, "float32")
            for dtype in ("float16", "bfloat16"):
                pairs = zip(exact, scores(checkpoint, dtype), strict=True)
                gaps = [abs(a - b) for a, b in pairs if a is not None and b is not None]
                mean = sum(gaps) / len(gaps)
                print(
                    f"{name}, {dtype}: {len(gaps)} steps, largest {max(gaps):.4f}, mean {mean:.5f}"
                )


if __name__ == "__main__":
    main()
