"""The CPU path: numba kernels over raw addresses; importing one compiles it or reads it from numba's cache."""
