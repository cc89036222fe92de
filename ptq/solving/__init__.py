"""From statistics to a plan: choices, grids, and every weight in dataflow order."""
