"""Analysis of a finished model: metrics, comparison of two models, kernels that really run, latency, and the report."""
