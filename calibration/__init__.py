"""Calibration: from data to statistics to ranges. Readers, the run of the float model, and the observers."""
