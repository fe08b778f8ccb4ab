"""Torch modules and algorithms: tensors in, tensors out. Knows nothing of Ray."""
