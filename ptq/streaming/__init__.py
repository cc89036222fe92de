"""Streaming of models too large for memory: weights alone, each layer read, solved, written and forgotten."""
