"""What all tests share: without a GPU, Triton's kernels run in its interpreter, chosen before any is imported."""

import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True, scope="session")
def _interpreted_loops_end_at_tensors() -> Iterator[None]:
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


@pytest.fixture(autouse=True, scope="session")
def _interpreter_patches_the_language_once() -> Iterator[None]:
    """Triton's interpreter replaces the language's functions anew at every call of one jitted function by another: half
    of its time. While they are replaced, there is nothing to do."""
    if torch.cuda.is_available():
        yield
        return
    from triton import language
    from triton.runtime import interpreter

    patch = interpreter._patch_lang
    is_builtin = language.core.is_builtin

    def patch_if_needed(fn: object) -> object:
        found = [value for value in fn.__globals__.values() if value is language or value is language.core]
        if any(is_builtin(lang.load) for lang in found) or is_builtin(language.core.tensor.__add__):
            return patch(fn)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = patch_if_needed
    yield
    interpreter._patch_lang = patch
