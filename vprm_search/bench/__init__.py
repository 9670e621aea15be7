"""Benchmarks of step scores: VisualProcessBench, ProcessBench, PRMBench."""
