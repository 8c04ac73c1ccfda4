"""FLOOR 1, tensors in, tensors out: backbone, descriptor, bank, search, loss, score map."""
