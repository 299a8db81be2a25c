"""How statistics are gathered: passes over the weights and over the calibration data."""
