"""FLOOR 1, backbone weights: the cache, the hub, the embedded file and its model card."""
