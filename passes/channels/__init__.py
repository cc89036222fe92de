"""Channels of a model: which belong together, what is known of them, and how some of them leave."""
