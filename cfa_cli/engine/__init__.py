"""FLOOR 2, the verbs: fit, predict, benchmark, export, calibrate, metrics."""
