"""Benchmarks of step scores: VisualProcessBench, ProcessBench, PRMBench; of pairs: VL-RewardBench."""
