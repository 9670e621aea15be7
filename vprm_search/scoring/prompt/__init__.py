"""Prompt layouts: problems and steps as tokens, with the places where scores are read."""
