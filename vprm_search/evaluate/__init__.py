"""Problem sets: pools of candidates, their critics at every N, and what is told of them."""
