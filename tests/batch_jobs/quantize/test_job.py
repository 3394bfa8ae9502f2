"""The whole job with tiny models: checkpoints that read back, the same after a kill, refused in one line."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from batch_jobs.quantize.calibrated_worker import CalibratedWorker
from batch_jobs.quantize.calibration import CalibrationSettings
from batch_jobs.quantize.job import PreparedJob, QuantizeJob, RunBlocks, run_quantize
from batch_jobs.quantize.layer_store import LayerStore, PartialFolder
from batch_jobs.quantize.matrices import STAGES, block_matrices
from batch_jobs.quantize.progress import BlockBar
from batch_jobs.quantize.settings import QuantizeSettings
from batch_jobs.quantize.weight_worker import WeightWorker
from cluster.errors import UserError
from cluster.model_shape import ModelShape
from kernels.bitsandbytes_layout import unpack_bnb_int8, unpack_bnb_nf4
from kernels.checkpoint_layouts import unpack_awq, unpack_gptq
from kernels.int8_matmul import dequantize_int8
from kernels.nf4_matmul import dequantize_nf4


@pytest.fixture
def gptq_job(tiny: dict[str, Path], text_file: Path, tmp_path: Path) -> QuantizeJob:
    return QuantizeJob(
        source=str(tiny["llama"]),
        output=tmp_path / "made",
        settings=QuantizeSettings(method="gptq"),
        calibration=CalibrationSettings(file=text_file, num_samples=4, seq_len=64),
        num_workers=1,
    )


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


class KilledError(Exception):
    """Ends a job as a kill does: nothing is cleaned up after it."""


def blocks_here(at_most: int = 99) -> RunBlocks:
    """One worker in this process, killed when it has done so many blocks."""

    def run(prepared: PreparedJob, store: LayerStore, bar: BlockBar) -> int:
        folder, settings = prepared.checkpoint, prepared.settings
        if prepared.calibration is None:
            weight_worker = WeightWorker(folder, settings, store, "cpu")
            for index in range(prepared.shape.layers):
                bar.done(weight_worker.quantize(index))
            return weight_worker.peak_memory_bytes()
        worker = CalibratedWorker(folder, list(prepared.calibration.windows), settings, store, "cpu")
        done = 0
        for index in range(prepared.shape.layers):
            if store.holds(index):
                worker.advance(index)
                continue
            if done == at_most:
                raise KilledError
            worker.enter(index)
            for stage in range(len(STAGES)):
                worker.measure(stage)
                worker.quantize(stage)
            worker.leave()
            bar.done(worker.write())
            done += 1
        return worker.peak_memory_bytes()

    return run


@pytest.fixture(autouse=True)
def gradients_back() -> Iterator[None]:
    """Workers switch them off for their whole process."""
    yield
    torch.set_grad_enabled(True)


def test_gptq_goes_on_after_a_kill_to_the_same_checkpoint(gptq_job: QuantizeJob, tmp_path: Path) -> None:
    whole = run_quantize(gptq_job, run_blocks=blocks_here())
    made = tensors_of(gptq_job.output)
    assert not PartialFolder.of(gptq_job.output).path.exists()
    assert whole.num_worse_than_rtn == 0
    assert "lm_head.weight" not in made
    stated = json.loads((gptq_job.output / "quantfleet.json").read_text())
    assert stated["calibration"]["paragraphs"]
    assert len(stated["layers"]) == 3 * 7

    killed = replace(gptq_job, output=tmp_path / "again")
    with pytest.raises(KilledError):
        run_quantize(killed, run_blocks=blocks_here(at_most=2))
    assert not killed.output.exists()
    resumed = run_quantize(killed, run_blocks=blocks_here())
    assert resumed.num_resumed_blocks == 2
    assert resumed.matrices == whole.matrices
    again = tensors_of(killed.output)
    assert again.keys() == made.keys()
    assert all(torch.equal(again[name], made[name]) for name in made)


def test_other_settings_begin_anew(gptq_job: QuantizeJob) -> None:
    with pytest.raises(KilledError):
        run_quantize(gptq_job, run_blocks=blocks_here(at_most=1))
    said = Console(record=True, quiet=False, file=io.StringIO(), width=200)
    other = replace(gptq_job, settings=QuantizeSettings(method="gptq", damping=0.05))
    assert run_quantize(other, said, run_blocks=blocks_here()).num_resumed_blocks == 0
    assert "1 blocks of another model, method or setting; beginning anew" in said.export_text()


def test_awq_folds_its_scales_so_that_only_rounding_is_lost(
    tiny: dict[str, Path], text_file: Path, tmp_path: Path
) -> None:
    """With keys for every query head all four operations are folded, biases too; at 8 bits the logits nearly stay."""
    job = QuantizeJob(
        source=str(tiny["qwen2"]),
        output=tmp_path / "awq",
        settings=QuantizeSettings(method="awq", bits=8, symmetric=False),
        calibration=CalibrationSettings(file=text_file, num_samples=4, seq_len=64),
    )
    run_quantize(job, run_blocks=blocks_here())
    made, source = tensors_of(job.output), tensors_of(tiny["qwen2"])
    norm, bias = "model.layers.1.input_layernorm.weight", "model.layers.1.self_attn.v_proj.bias"
    assert not torch.equal(made[norm], source[norm])
    assert not torch.equal(made[bias], source[bias])
    assert torch.equal(made["lm_head.weight"], source["lm_head.weight"])
    logits = [logits_of(tiny["qwen2"], weights) for weights in (source, dequantized(made, job.output, 8))]
    assert float((logits[1] - logits[0]).std() / logits[0].std()) < 0.03


@pytest.mark.parametrize("method", ["awq", "rtn", "int8", "nf4", "fp8"])
def test_every_method_reads_back_near_the_weights(
    method: str, tiny: dict[str, Path], text_file: Path, tmp_path: Path
) -> None:
    job = QuantizeJob(
        source=str(tiny["llama"]),
        output=tmp_path / "made",
        settings=QuantizeSettings(method=method, symmetric=method != "awq"),
        calibration=CalibrationSettings(file=text_file, num_samples=2, seq_len=64),
        num_workers=1,
    )
    report = run_quantize(job, run_blocks=blocks_here())
    assert report.output_bytes == sum(tensor.nbytes for tensor in tensors_of(job.output).values())
    weights = dequantized(tensors_of(job.output), job.output, 4)
    source = tensors_of(tiny["llama"])
    assert weights.keys() == source.keys()
    name = "model.layers.2.mlp.down_proj.weight"
    if method != "awq":  # whose rows and columns are scaled
        error = (weights[name] - source[name].float()).square().sum() / source[name].float().square().sum()
        assert 0 < float(error) < 0.03


def test_mistakes_leave_no_checkpoint_behind(gptq_job: QuantizeJob, tiny: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--group-size 128: does not divide the 64 columns"):
        run_quantize(replace(gptq_job, settings=QuantizeSettings(method="gptq", group_size=128)))
    with pytest.raises(UserError, match=r"--seq-len 256: .* attends to 128 tokens"):
        run_quantize(replace(gptq_job, calibration=replace(gptq_job.calibration, seq_len=256)))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty and no former result"):
        run_quantize(replace(gptq_job, output=tmp_path / "full", overwrite=True))
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny["llama"], damaged)
    whole = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"not a whole safetensors file"):
        run_quantize(replace(gptq_job, source=str(damaged)))
    weights = load_file(tiny["llama"] / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, damaged / "model.safetensors")
    with pytest.raises(UserError, match=r"tensor model.layers.1.mlp.up_proj.weight is missing"):
        run_quantize(replace(gptq_job, source=str(damaged)))
    assert not gptq_job.output.exists()


def test_a_result_is_replaced_only_when_asked(tiny: dict[str, Path], tmp_path: Path) -> None:
    job = QuantizeJob(source=str(tiny["llama"]), output=tmp_path / "made", settings=QuantizeSettings(method="fp8"))
    run_quantize(job, run_blocks=blocks_here())
    with pytest.raises(UserError, match="give another folder or --overwrite"):
        run_quantize(job)
    run_quantize(replace(job, settings=QuantizeSettings(method="rtn"), overwrite=True), run_blocks=blocks_here())
    assert "model.layers.0.mlp.up_proj.qweight" in tensors_of(job.output)
    with pytest.raises(UserError, match="is quantised already"):
        run_quantize(replace(job, source=str(job.output), output=tmp_path / "twice"))


def dequantized(made: dict[str, Tensor], folder: Path, bits: int) -> dict[str, Tensor]:
    """Dense fp32 weights by the layout's own readers."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    shape = ModelShape.from_hf_config(folder)
    weights = {name: tensor.float() for name, tensor in made.items() if name.count(".") < 4 or "norm" in name}
    weights |= {name: tensor.float() for name, tensor in made.items() if name.endswith(".bias")}
    for index in range(shape.layers):
        for matrix in block_matrices(shape):
            name = f"model.layers.{index}.{matrix.name}"
            found = {key.removeprefix(f"{name}."): value for key, value in made.items() if key.startswith(f"{name}.")}
            found.pop("bias", None)
            weights[f"{name}.weight"] = _dense(found, config, bits)
    return weights


def _dense(found: dict[str, Tensor], config: dict[str, object], bits: int) -> Tensor:
    match config["quant_method"]:
        case "gptq":
            return unpack_gptq(**found, bits=bits).dequantize()
        case "awq":
            return unpack_awq(**found).dequantize()
        case "compressed-tensors":
            return found["weight"].float() * found["weight_scale"].float()
        case _:
            nf4 = config["load_in_4bit"]
            return dequantize_nf4(unpack_bnb_nf4(found)) if nf4 else dequantize_int8(unpack_bnb_int8(found))


def logits_of(folder: Path, weights: dict[str, Tensor]) -> Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    with torch.inference_mode():
        return model(torch.arange(48).view(2, 24) * 97).logits
