"""Float model to float model: the same function, easier to quantize."""
