"""What all tests share: where there is no GPU, Triton's kernels run in its interpreter, chosen before any is imported."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True, scope="session")
def _interpreted_loops_end_at_tensors():
    """Triton's interpreter takes int() of an array of one element for a loop's bound; NumPy 2.4 refuses that."""
    if torch.cuda.is_available():
        yield
        return
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched
    yield
    interpreter._patch_lang_tensor = patch
