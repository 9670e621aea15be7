"""The in-process engine: every token of every path is computed once."""
