"""Experiments with a model's weights and activations, as the papers behind the variants made them."""
