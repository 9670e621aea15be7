"""Step labels for any policy: Monte Carlo labels, their records, and scored paths.

`monte_carlo` is the recipe behind VisualPRM400K, `records` the file it writes, and `scored_paths`
what a calibration is fitted on.
"""
