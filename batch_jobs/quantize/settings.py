"""What a user may set about a quantisation, and which of it a model's dimensions allow; it quantises nothing."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Literal

from batch_jobs.quantize.grid import GridSettings
from batch_jobs.quantize.matrices import block_matrices
from cluster.errors import UserError
from cluster.model_shape import ModelShape

QuantizeMethod = Literal["gptq", "awq", "rtn", "int8", "nf4", "fp8"]
GroupSize = int | Literal["row", "largest"]
"""Columns that share a scale; a scale for each row; the largest of GROUP_SIZES that divides the model's rows."""
TokenWeights = Literal["residual", "equal"]
"""What an error of a token's outputs counts: by its share of the residual stream (block_pass), or as in the papers."""
Layout = Literal["gptq", "awq", "bitsandbytes", "compressed-tensors", "dense"]

CALIBRATED: tuple[QuantizeMethod, ...] = ("gptq", "awq")
INTEGER: tuple[QuantizeMethod, ...] = ("gptq", "awq", "rtn")
BITS = (2, 3, 4, 8)
GROUP_SIZES = (128, 64, 32)
"""The largest that divides is taken where none is asked for: the fewest scales."""
NF4_BLOCK = 64
WORD_BITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeSettings:
    """Everything that decides the weights that come out, beside the model and the calibration text."""

    method: QuantizeMethod
    bits: int = 4
    group_size: GroupSize = "largest"
    symmetric: bool = True
    act_order: bool = False
    static_groups: bool = False
    damping: float = 0.01
    token_weights: TokenWeights = "residual"
    keep_salient: float = 0.0
    """AWQ's motivation instead of AWQ: that share of input channels stays 16 bit, the others are rounded."""
    double_quant: bool = True

    def __post_init__(self) -> None:
        _refuse_odd_values(self)
        for flag, name, methods in (
            (self.act_order, "--act-order", ("gptq",)),
            (self.static_groups, "--static-groups", ("gptq",)),
            (self.keep_salient, "--keep-salient", ("awq",)),
        ):
            if flag and self.method not in methods:
                raise UserError(f"{name}: belongs to --method {methods[0]}, not to {self.method}; leave it out")
        if self.static_groups and not self.act_order:
            raise UserError("--static-groups: only says something with --act-order; give both or neither")

    @property
    def layout(self) -> Layout:
        """AWQ's own layout holds 4 bits only; its other widths are integers like GPTQ's, and stored like those."""
        if self.keep_salient:
            return "dense"
        match self.method:
            case "awq":
                return "awq" if self.bits == 4 else "gptq"
            case "gptq" | "rtn":
                return "gptq"
            case "fp8":
                return "compressed-tensors"
            case _:
                return "bitsandbytes"

    @property
    def grid(self) -> GridSettings:
        return GridSettings(
            bits=self.bits,
            group_size=self.columns_a_group,
            symmetric=self.symmetric,
            lowest_zero=1 if self.layout == "gptq" else 0,
        )

    @property
    def columns_a_group(self) -> int | None:
        """None: the whole row."""
        assert self.group_size != "largest", "settings are fitted to the model first"
        return None if self.group_size == "row" else self.group_size

    def fitted(self, shape: ModelShape) -> QuantizeSettings:
        """With a group size of this model; UserError that names the matrix where the layout cannot hold it."""
        settings = self
        if self.group_size == "largest":
            settings = replace(self, group_size=largest_group_size(shape) or "row")
        _refuse_unfit(settings, shape)
        return settings

    @property
    def summary(self) -> str:
        """For people: what the table, the model card and the progress bar say."""
        match self.method:
            case "gptq" | "awq" | "rtn":
                groups = "a scale a row" if self.group_size == "row" else f"groups of {self.group_size}"
                words = [f"{self.bits} bits", groups, "symmetric" if self.symmetric else "with zero points"]
                words += ["act-order"] if self.act_order else []
                words += ["static groups"] if self.static_groups else []
                words += [f"{self.keep_salient:.2%} of channels in 16 bit"] if self.keep_salient else []
                return ", ".join(words)
            case "nf4":
                return f"4 bits, blocks of {NF4_BLOCK}" + (", double quantisation" if self.double_quant else "")
            case "int8":
                return "8 bits, a scale a row"
            case "fp8":
                return "float8 e4m3, a scale a row"

    def key(self, *rest: str) -> str:
        """Equal where these settings and the rest (source, calibration) are."""
        return hashlib.sha256(json.dumps([asdict(self), *rest]).encode()).hexdigest()


def _refuse_odd_values(settings: QuantizeSettings) -> None:
    if settings.bits not in BITS:
        raise UserError(f"--bits {settings.bits}: must be one of {', '.join(map(str, BITS))}")
    if settings.bits != 4 and settings.method not in INTEGER:
        raise UserError(f"--bits {settings.bits}: {settings.method} has a width of its own; leave it out")
    if settings.group_size not in (*GROUP_SIZES, "row", "largest"):
        raise UserError(f"--group-size {settings.group_size}: must be 32, 64, 128, or -1 for a scale a row")
    if not 0 < settings.damping < 1:
        raise UserError(f"--damping {settings.damping}: must lie between 0 and 1; the paper takes 0.01")
    if not 0 <= settings.keep_salient < 1:
        raise UserError(f"--keep-salient {settings.keep_salient}: a share of the channels, at least 0 and below 1")


def largest_group_size(shape: ModelShape) -> int | None:
    """The largest of 128, 64, 32 that divides the rows of all matrices; None where none does."""
    columns = {matrix.columns for matrix in block_matrices(shape)}
    return next((size for size in GROUP_SIZES if all(count % size == 0 for count in columns)), None)


def _refuse_unfit(settings: QuantizeSettings, shape: ModelShape) -> None:
    for matrix in block_matrices(shape):
        at = f"{shape.name}: model.layers.*.{matrix.name} of [{matrix.rows}, {matrix.columns}]"
        group_size = settings.columns_a_group
        if settings.method in INTEGER and group_size and matrix.columns % group_size:
            raise UserError(
                f"--group-size {group_size}: does not divide the {matrix.columns} columns of {at};"
                f" give --group-size {largest_group_size(shape) or -1} or leave it out"
            )
        if settings.method == "nf4" and matrix.columns % NF4_BLOCK:
            raise UserError(f"{at}: rows of nf4 are a multiple of {NF4_BLOCK} long; use another --method")
        for size in (matrix.rows, matrix.columns):
            if settings.layout in ("gptq", "awq") and size * settings.bits % WORD_BITS:
                raise UserError(f"{at}: {size} values of {settings.bits} bits do not fill 32-bit words; use --bits 8")
