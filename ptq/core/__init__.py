"""Values and arithmetic: grids, rounding, histograms, encodings, plans. Plain arrays, no graph, no file."""
