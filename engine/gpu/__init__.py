"""The engine's steps on a CUDA device: decodes as one CUDA graph per batch size, prompts beside them."""
