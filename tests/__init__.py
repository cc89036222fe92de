"""Tests: contracts per family, slow obvious twins, golden graphs, and real models where they are at hand."""
