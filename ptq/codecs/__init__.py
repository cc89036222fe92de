"""Codecs of weights, to bytes and back: arrays in, arrays out, no graph and no file."""
