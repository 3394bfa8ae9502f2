"""`python -m kernels.bench`: the GPU's kernels where there is a GPU, else the CPU's."""

import torch

from kernels.bench import cpu

if __name__ == "__main__":
    if torch.cuda.is_available():
        from kernels.bench import gpu

        gpu.main()
    else:
        cpu.main()
