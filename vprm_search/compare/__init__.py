"""Measure strategies, selectors and sizes against each other at equal generated tokens."""
