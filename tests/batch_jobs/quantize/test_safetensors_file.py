"""Safetensors files: what the library reads back, and nothing left behind where the disk is full."""

import subprocess
import sys
from pathlib import Path

import torch
from safetensors import safe_open

from batch_jobs.quantize.safetensors_file import write_safetensors


def test_the_library_reads_every_type_back(tmp_path: Path) -> None:
    tensors = {
        "bytes": torch.arange(7, dtype=torch.uint8),
        "scalar": torch.tensor(3, dtype=torch.uint8),
        "float": torch.randn(3, 5),
        "half": torch.randn(3, 5).half(),
        "bf16": torch.randn(2, 2).bfloat16(),
        "fp8": torch.randn(2, 3).to(torch.float8_e4m3fn),
        "words": torch.randint(-9, 9, (2, 3), dtype=torch.int32),
        "int8": torch.randint(-9, 9, (3,), dtype=torch.int8),
        "long": torch.tensor([2**40]),
        "transposed": torch.randn(4, 3).T,
        "empty": torch.empty(0, 4),
    }
    path = tmp_path / "some.safetensors"
    write_safetensors(path, tensors, {"key": "value"})
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "key": "value"}
        assert set(file.keys()) == set(tensors)
        for name, tensor in tensors.items():
            read = file.get_tensor(name)
            assert read.dtype == tensor.dtype
            assert torch.equal(read.float(), tensor.float())
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_an_os_error_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the kernel refuses the write in the middle in the same way."""
    program = (
        "import resource, sys, torch\n"
        "from pathlib import Path\n"
        "from batch_jobs.quantize.safetensors_file import write_safetensors\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))\n"
        "try:\n"
        "    write_safetensors(Path(sys.argv[1]), {'a': torch.zeros(5000)})\n"
        "except OSError as error:\n"
        "    print(type(error).__name__, error.errno)\n"
    )
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", program, str(tmp_path / "big.safetensors")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("OSError 27")
    assert list(tmp_path.iterdir()) == []
