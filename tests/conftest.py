"""What all tests share: where there is no GPU, Triton's kernels run in its interpreter, chosen before any is imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
