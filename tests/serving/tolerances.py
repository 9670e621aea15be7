"""How far a served score may be from one made in this process, both in float32.

Two right float32 runs differ in their last digits, and a model multiplies that. Random weights of
the original layouts do so little: `EXACT`. The trained reward model does so more: over 7,810 steps
of 32 searches the in-process scores are up to 1.7e-5 from the same model in float64. On the step
where it is furthest off, the server is 1.0e-5 off to the other side: 2.7e-5 between the two.
"""

EXACT = 1e-5
"""For converted checkpoints with random weights."""

TRAINED = 2e-5
"""For the trained model against itself in float64."""

TRAINED_TWICE = 3e-5
"""For two float32 runs of the trained model: the 2.7e-5 above, and little more."""
