"""The operations of a step on a GPU, in Triton and cuBLAS; bf16 in and out, static shapes, ready for CUDA graphs."""
