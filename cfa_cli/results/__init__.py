"""FLOOR 1, results out: scores, overlays, maps, reports."""
