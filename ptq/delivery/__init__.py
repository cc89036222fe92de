"""Delivery of a finished model to its place on disk, and the folder that an interrupted run goes on from."""
