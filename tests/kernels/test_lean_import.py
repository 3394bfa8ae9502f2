"""Importing the operations imports neither numba nor triton: a GPU host may lack the one, a CPU host the other."""

import pkgutil
import subprocess
import sys

import kernels


def test_no_compiler_is_imported() -> None:
    names = [f"kernels.{module.name}" for module in pkgutil.iter_modules(kernels.__path__) if not module.ispkg]
    assert "kernels.dense_matmul" in names
    script = (
        f"import sys, {', '.join(names)}; print([m for m in ('numba', 'triton', 'transformers') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
