"""The table of tuned configurations: the first entry whose conditions hold, and files whose entries are whole."""

import json

import pytest
import torch

from kernels.gpu.gemv import GemvConfig
from kernels.gpu.scaled_gemm import GemmConfig
from kernels.gpu.tuning import FOLDER, first_match, tuned_config

ENTRIES = [
    {"when": {"k": 4096, "n_min": 8192, "m_max": 16}, "config": {"rows": 4}},
    {"when": {"k": 4096}, "config": {"rows": 2}},
]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"k": 4096, "n": 8192, "m": 16}, {"rows": 4}),
        ({"k": 4096, "n": 8191, "m": 16}, {"rows": 2}),
        ({"k": 4096, "n": 8192, "m": 17}, {"rows": 2}),
        ({"k": 4097, "n": 8192, "m": 1}, None),
    ],
)
def test_first_match(sizes, expected):
    assert first_match(ENTRIES, sizes) == expected


def test_a_condition_on_nothing_is_an_error():
    with pytest.raises(KeyError):
        first_match([{"when": {"width": 1}, "config": {}}], {"k": 1})


def test_the_cpu_has_no_table():
    assert tuned_config("gemv", GemvConfig, torch.zeros(1), n=1, k=1, weight_bytes=2, gated=False) is None


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_tables_fit_their_operations(path):
    sizes = {
        "gemv": (GemvConfig, {"n": 1, "k": 1, "weight_bytes": 1, "gated": 0}),
        "scaled_gemm": (GemmConfig, {"m": 1, "n": 1, "k": 1, "a_bytes": 1, "w_bytes": 1}),
    }
    table = json.loads(path.read_text())
    for operation, (config, known) in sizes.items():
        for entry in table.get(operation, []):
            config(**entry["config"])
            first_match([entry], known)
