"""Models that are quantized already: delivered as they came, or completed where parts of them are float."""
