"""Tensor operations of the engine, one a file, each with its reference; they know tensors and nothing of models, requests or configs."""
