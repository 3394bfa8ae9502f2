"""README.md of a quantised checkpoint: what it was made of, how, and how to load it; it knows no tensors."""

from __future__ import annotations

from batch_jobs.quantize.report import QuantizeReport
from batch_jobs.quantize.settings import CALIBRATED, QuantizeSettings

QUALITY_LINE = "Quality: not measured yet; `quantfleet evaluate` does it."
"""`evaluate --register` puts its figures in the place of this line."""

ENTRY = "`{{method: {method}, source: {folder}}}` under `variants:` of fleet.yaml"
LOADING = {
    "gptq": f"GPTQ's layout (v1), read by transformers with gptqmodel, by vLLM, and by quantfleet: {ENTRY}.",
    "awq": f"AWQ's layout (gemm), read by transformers with gptqmodel or autoawq, by vLLM, and by quantfleet: {ENTRY}.",
    "bitsandbytes": f"bitsandbytes' format, read by transformers with bitsandbytes, and by quantfleet: {ENTRY}.",
    "compressed-tensors": "compressed-tensors' float-quantized (weights by row, activations by token as they come),"
    f" read by vLLM, by transformers with compressed-tensors, and by quantfleet: {ENTRY}.",
    "dense": "a plain bf16 checkpoint: no format has 16-bit columns inside of integer matrices, so the rounded weights"
    " are written as they dequantise. It shows quality and saves no memory.",
}


def model_card(report: QuantizeReport, tied: bool) -> str:
    settings = report.settings
    lines = [
        "---",
        f"base_model: {report.source.removeprefix('embedded:')}",
        "library_name: transformers",
        f"tags: [quantized, {settings.method}]",
        "---",
        "",
        f"# {report.output.name}",
        "",
        f"{report.source} quantised by quantfleet: {settings.method}, {settings.summary}."
        f" {'The tied embedding' if tied else 'Embedding and head'} and all norms stay as they were"
        f"{', but that AWQ folded its scales into norms' if settings.layout == 'awq' else ''}.",
        "",
        QUALITY_LINE,
        "",
        f"- Bytes of the tensors: {report.output_bytes:,}, of the source {report.source_bytes:,}.",
        f"- Made in {report.seconds:.0f} s with {report.peak_memory_bytes / 1e9:.2f} GB of memory at most.",
        f"- Calibration: {_calibration(report)}.",
        f"- Loading: {LOADING[settings.layout].format(folder=report.output.name, method=_variant_method(settings))}",
        "",
        "Everything that is said here, and the error of every matrix, is in `quantfleet.json` too.",
        "",
        "## Errors",
        "",
        *_error_table(report),
        "",
    ]
    return "\n".join(lines)


def _variant_method(settings: QuantizeSettings) -> str:
    """As fleet.yaml names it: whatever lies in GPTQ's layout is read as that."""
    return settings.layout if settings.layout in ("gptq", "awq") else settings.method


def _calibration(report: QuantizeReport) -> str:
    calibration = report.calibration
    if calibration is None:
        return "none; the method looks at weights only"
    return (
        f"{calibration.num_samples} samples of {calibration.seq_len} tokens (seed {calibration.seed})"
        f" of {calibration.name}, sha256 {calibration.sha256}"
    )


def _error_table(report: QuantizeReport) -> list[str]:
    if report.settings.method in CALIBRATED:
        rows = [
            f"| {name} | {found['error']:.4g} | {found['rtn_error']:.4g} | {found['relative']:.3%} |"
            for name, found in report.matrices.items()
        ]
        head = ["| matrix | error | of RTN | over the output |", "|---|---|---|---|"]
        weighted = report.settings.token_weights == "residual"
        mean = "weighted by 1 over the residual stream's mean square" if weighted else "all alike"
        return [f"`||(Q - W) x||^2`, mean over calibration tokens, {mean}.", "", *head, *rows]
    rows = [f"| {name} | {found['weight_error']:.4%} |" for name, found in report.matrices.items()]
    return ["`||Q - W||^2 / ||W||^2`.", "", "| matrix | error |", "|---|---|", *rows]
