"""Problem sets as people have them: read, graded by their published rules, shown."""
