"""A small network of our own and real data that needs no download: what `make demo` and the tests run on."""
