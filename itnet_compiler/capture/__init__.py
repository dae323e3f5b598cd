"""Capture: from one call of a model to a flat graph of ATen operators that refers to the model's tensors by path."""
