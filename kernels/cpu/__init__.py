"""The CPU path: numba kernels over raw addresses; importing a module here compiles it or reads it from numba's cache."""
