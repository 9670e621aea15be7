"""Benchmarks of step scores (VisualProcessBench, ProcessBench, PRMBench) and of pairs."""
