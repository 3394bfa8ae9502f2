"""Blocks on Ray's workers: two of them find what one finds, up to the order of sums."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from batch_jobs.local_ray import job_ray
from batch_jobs.quantize.calibration import CalibrationSettings
from batch_jobs.quantize.job import QuantizeJob, run_quantize
from batch_jobs.quantize.settings import QuantizeSettings

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def ray_running() -> Iterator[None]:
    with job_ray():
        yield


def test_two_workers_are_one_up_to_the_order_of_sums(tiny: dict[str, Path], text_file: Path, tmp_path: Path) -> None:
    job = QuantizeJob(
        source=str(tiny["llama"]),
        output=tmp_path / "one",
        settings=QuantizeSettings(method="gptq"),
        calibration=CalibrationSettings(file=text_file, num_samples=4, seq_len=64),
        num_workers=1,
    )
    two = replace(job, output=tmp_path / "two", num_workers=2)
    reports = [run_quantize(job), run_quantize(two)]
    assert list(reports[0].matrices) == list(reports[1].matrices)
    first = "model.layers.0.self_attn.q_proj"
    errors = [report.matrices[first]["rtn_error"] for report in reports]
    assert errors[1] == pytest.approx(errors[0], rel=1e-4)
    codes = [load_file(folder / "model.safetensors")[f"{first}.qweight"] for folder in (job.output, two.output)]
    assert (codes[0] == codes[1]).float().mean() > 0.95
    assert all(torch.is_tensor(words) and words.dtype == torch.int32 for words in codes)


def test_blocks_that_need_no_calibration_are_shared_out(tiny: dict[str, Path], tmp_path: Path) -> None:
    job = QuantizeJob(
        source=str(tiny["llama"]), output=tmp_path / "fp8", settings=QuantizeSettings(method="fp8"), num_workers=2
    )
    assert len(run_quantize(job).matrices) == 3 * 7
