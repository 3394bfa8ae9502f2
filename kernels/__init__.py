"""Tensor operations, one a file, each with its reference; they know nothing of models, requests or configs."""
