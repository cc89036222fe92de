"""Where bits and products are spent."""
