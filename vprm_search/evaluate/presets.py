"""Settings of published runs under a name; whatever is given beside a preset replaces its own.

"paper" is what VisualPRM's paper says of its best-of-8 (arXiv 2503.10291, 4.1): N = 8, temperature
.7, VLMEvalKit's prompts and numbers of tiles. "vlmevalkit" is what the public code for the same
does (its configuration InternVL2_5-8B-BoN-8): temperature .6, top_p .95, candidate 0 the most
likely solution. Nothing says which of the two made the printed figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from vprm_search.datasets.known import SetName
from vprm_search.evaluate.tiles import Tiling


@dataclass(frozen=True, slots=True)
class Preset:
    """The settings of a run.

    Args:
        n: candidates of a problem.
        temperature, top_p: of the policy.
        prompt: by name (`prompts.PROMPTS`).
        max_tokens: tokens a solution may have.
        greedy_first: whether candidate 0 is the most likely solution.
        tiled: whether the reward model is shown pictures as VLMEvalKit shows them to its policy;
            else as its checkpoint says.
    """

    n: int = 8
    temperature: float = 0.7
    top_p: float = 1.0
    prompt: str = "plain"
    max_tokens: int = 4096
    greedy_first: bool = False
    tiled: bool = False

    def tiling(self, name: SetName) -> Tiling | None:
        """Return the rule for tiles of a set, None for that of the checkpoint."""
        if not self.tiled:
            return None
        return _MMMU_TILES if name == "mmmu" else _TILES


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "default": Preset(),
        "paper": Preset(prompt="cot", tiled=True),
        "vlmevalkit": Preset(
            temperature=0.6, top_p=0.95, prompt="cot", greedy_first=True, tiled=True
        ),
    }
)
"""The presets by name."""

_TILES = Tiling(6, together=64)
_MMMU_TILES = Tiling(12, together=64, doubled=True)
