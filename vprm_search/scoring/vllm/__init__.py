"""Scores from a vLLM server: with our plugin, or through a stock server's own routes."""
