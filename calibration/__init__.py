"""Data to statistics to ranges: readers, the calibration run, and the observers."""
