"""Models too large for memory: weights alone, one layer after the other, each read, solved, written and forgotten."""
