"""From a finished model to its place on disk, and what an interrupted run goes on from."""
