"""Runs that end in a smaller float model: channels that carry nothing leave, and no integer comes."""
