"""The registry, this host, and what nvidia-smi says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.accelerators import (
    Accelerator,
    accelerator_named,
    detect,
    detect_cpu,
    detect_gpu,
    gpu_of,
    known_accelerators,
    serving_kinds,
)
from cluster.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTFLEET_CACHE", str(tmp_path))


@pytest.mark.parametrize("accelerator", known_accelerators().values(), ids=lambda accelerator: accelerator.name)
def test_the_registry_is_plausible(accelerator: Accelerator) -> None:
    assert 20e9 < accelerator.memory_bytes < 300e9
    assert 0.2e12 < accelerator.bandwidth_bytes_per_s < 10e12
    assert accelerator.flops["bf16"] > 100e12
    assert accelerator.flops["int8"] == pytest.approx(2 * accelerator.flops["bf16"], rel=0.02) or (
        accelerator.name == "RTX-4090"  # halves the bf16 rate for fp32 accumulation
    )
    assert 0.1 < accelerator.price_per_hour < 20


def test_a_dtype_without_units_runs_at_the_bf16_rate() -> None:
    a100 = accelerator_named("A100-80G")
    assert a100.peak("fp8") == a100.flops["bf16"]
    assert a100.peak("int8") == 624e12


def test_unknown_hardware_is_refused_with_what_is_known() -> None:
    with pytest.raises(UserError, match=r"accelerator: 'H100' is not in the registry; did you mean H100-80G\?"):
        accelerator_named("H100")
    with pytest.raises(UserError, match=r"known: .*L40S"):
        accelerator_named("abacus")


def test_the_price_may_be_ones_own() -> None:
    assert accelerator_named("L4", 0.25).price_per_hour == 0.25
    assert accelerator_named("auto", 0.0).price_per_hour == 0.0


def test_this_host_is_measured_once_and_is_plausible(tmp_path: Path) -> None:
    host = detect_cpu()
    assert host.cores >= 1
    assert host.memory_bytes > 2**30
    assert 1e9 < host.bandwidth_bytes_per_s < 2e12
    assert 1e9 < host.flops["fp32"] < 1e14
    assert host.flops["int8"] > host.flops["fp32"]
    [file] = (tmp_path / "hosts").iterdir()
    written = file.stat().st_mtime_ns
    assert detect_cpu() == host
    assert file.stat().st_mtime_ns == written
    file.write_text("{")
    assert detect_cpu().cores == host.cores


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("NVIDIA H100 80GB HBM3, 81559", "H100-80G"),
        ("NVIDIA A100-SXM4-80GB, 81920", "A100-80G"),
        ("NVIDIA H200, 143771", "H200"),
        ("NVIDIA GeForce RTX 4090, 24564", "RTX-4090"),
        ("NVIDIA L40S, 46068\nNVIDIA L40S, 46068", "L40S"),
        ("NVIDIA L4, 23034", "L4"),
        ("NVIDIA A100-SXM4-40GB, 40960", None),
        ("Tesla T4, 15360", None),
        ("", None),
    ],
)
def test_gpus_by_the_names_of_nvidia_smi(line: str, name: str | None) -> None:
    found = gpu_of(line)
    assert (found.name if found else None) == name
    if found is not None:
        assert found.memory_bytes == int(line.splitlines()[0].split(",")[1]) * 2**20
        assert found.count == len(line.splitlines())


def test_torchs_cpu_build_serves_on_the_cpu_whatever_the_host_has(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    has_gpus = torch.version.cuda is not None
    assert serving_kinds() == (("gpu", "cpu") if has_gpus else ("cpu",))
    monkeypatch.setattr("cluster.accelerators._nvidia_smi", lambda: "NVIDIA H100 80GB HBM3, 81559")
    assert detect().name == ("H100-80G" if has_gpus else detect_cpu().name)
    assert detect_gpu() == replace(known_accelerators()["H100-80G"], count=1)
