"""FLOOR 1, disk in, arrays out, and back: images, data sets, weights, bundles, overlays, report."""
