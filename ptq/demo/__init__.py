"""Demo: a small network of our own and real data that needs no download, for `make demo` and the tests."""
