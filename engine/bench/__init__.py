"""The engine's benchmark: this engine beside transformers on the same weights, in the same run."""
