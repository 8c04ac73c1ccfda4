"""FLOOR 1, images in: finding, decoding, data sets and their masks, arriving files."""
