"""What came out: metrics, comparison of two models, kernels that really run, latency, and the report made of them."""
