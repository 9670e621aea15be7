"""How far a served score may be from one made in this process, both in float32.

Two right float32 runs differ in their last digits, and a model multiplies that. Random weights of
the original layouts do so little: `EXACT`. The trained reward model has large logits: over 7,810
steps of 32 searches its in-process scores are within 1.7e-5 of the same model in float64, and the
served ones within 1.1e-5, on other steps and to the other side.
"""

EXACT = 1e-5
"""For converted checkpoints with random weights."""

TRAINED = 2e-5
"""For the trained model against itself in float64."""

TRAINED_TWICE = 4e-5
"""For two float32 runs of the trained model, each within `TRAINED` of float64."""
