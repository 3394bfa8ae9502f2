"""GPTQ (Frantar et al. 2022, arXiv:2210.17323): one matrix and the Hessian of its inputs in, integers out.

It knows no layer, no model and no checkpoint. Columns are quantised one by one; what a column's rounding adds to the
output is taken out again, as far as can be, by the columns after it:
err = (w_q - quant(w_q)) / U[q, q], W[:, q:] -= err U[q, q:], with U the upper Cholesky factor of H^-1 (Algorithm 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from batch_jobs.quantize.grid import Grid, GridSettings, find_grid, in_groups
from kernels.checkpoint_layouts import IntegerWeight

BLOCK_COLUMNS = 128
"""Columns whose updates of all later ones are put off and done as one product: the paper's B."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GptqSettings:
    grid: GridSettings
    damping: float = 0.01
    """Added to the Hessian's diagonal, as a share of its mean: the paper's 1 %."""
    act_order: bool = False
    """Columns in the order of falling Hessian diagonal; codes come back in the matrix' own order."""
    static_groups: bool = False
    """With act-order: groups of neighbouring columns whose grids are found before any update."""


class NotPositiveDefiniteError(ValueError):
    """The damped Hessian has no Cholesky factor."""


def gptq(weight: Tensor, hessian: Tensor, settings: GptqSettings) -> IntegerWeight:
    """[N, K] fp32 and [K, K] fp32 -> integers; ValueError where groups do not divide K."""
    columns = weight.shape[1]
    group_size = settings.grid.columns_a_group(columns)
    if group_size != columns and BLOCK_COLUMNS % group_size:
        raise ValueError(f"groups of {group_size} do not divide the blocks of {BLOCK_COLUMNS} columns")
    diagonal = hessian.diagonal()
    order = torch.arange(columns, device=weight.device)
    if settings.act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
    dead = diagonal == 0  # inputs that are always 0: any code does, and that of 0 leaves the grid's range alone
    factor = inverse_factor(hessian[order][:, order], settings.damping)
    alive = weight.masked_fill(dead, 0.0)
    grids = _Grids.of(alive, order, group_size, settings)
    codes = _sweep(alive[:, order].T.contiguous(), factor, grids)
    own_order = torch.argsort(order)
    return IntegerWeight(
        codes=codes.T[:, own_order].contiguous(),
        scales=grids.scales.T.contiguous(),
        zeros=grids.zeros.T.contiguous(),
        group_of=grids.group_of_place[own_order].to(torch.int32),
        bits=settings.grid.bits,
    )


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """U, upper triangular, with U^T U = (H + damping * mean(diag H))^-1; a diagonal of 0 counts as 1."""
    damped = hessian.clone()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1.0
    diagonal += damping * diagonal.mean()
    lower, failed = torch.linalg.cholesky_ex(damped)
    if not failed:
        inverse = torch.cholesky_inverse(lower)
        del damped, lower
        upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
    if failed:
        raise NotPositiveDefiniteError(f"the Hessian with a damping of {damping} is not positive definite")
    return upper


@dataclass(slots=True, kw_only=True)
class _Grids:
    """The grids of all groups, found beforehand or as the sweep reaches a group."""

    settings: GridSettings
    scales: Tensor
    """[groups, N] fp16"""
    zeros: Tensor
    group_of_place: Tensor
    """[K]: the group of the column at each place of the sweep"""
    found_on_the_way: int | None
    """Places a group, where its grid is that of the updated weights at its first place."""

    @classmethod
    def of(cls, weight: Tensor, order: Tensor, group_size: int, settings: GptqSettings) -> _Grids:
        rows, columns = weight.shape
        places = torch.arange(columns, device=weight.device)
        if settings.static_groups or group_size == columns:
            grid = find_grid(in_groups(weight, settings.grid), settings.grid)
            return cls(
                settings=settings.grid,
                scales=grid.scales.T.contiguous(),
                zeros=grid.zeros.T.contiguous(),
                group_of_place=order // group_size,
                found_on_the_way=None,
            )
        shape = (columns // group_size, rows)
        return cls(
            settings=settings.grid,
            scales=torch.empty(shape, dtype=torch.float16, device=weight.device),
            zeros=torch.empty(shape, dtype=torch.uint8, device=weight.device),
            group_of_place=places // group_size,
            found_on_the_way=group_size,
        )

    def at(self, place: int, group: int, block: Tensor, row: int) -> Grid:
        """The grid of the column at a place of the sweep, row `row` of the block's [columns, N] weights."""
        if self.found_on_the_way and place % self.found_on_the_way == 0:
            grid = find_grid(block[row : row + self.found_on_the_way].T, self.settings)
            self.scales[group], self.zeros[group] = grid.scales, grid.zeros
        return Grid(scales=self.scales[group], zeros=self.zeros[group])


def _sweep(weight: Tensor, factor: Tensor, grids: _Grids) -> Tensor:
    """[K, N] weights, transposed so that a column lies together -> [K, N] uint8 codes; overwrites the weights."""
    columns = weight.shape[0]
    codes = torch.empty_like(weight, dtype=torch.uint8)
    group_of_place = grids.group_of_place.tolist()
    pivots = factor.diagonal().tolist()
    max_code = grids.settings.max_code
    for begin in range(0, columns, BLOCK_COLUMNS):
        end = min(begin + BLOCK_COLUMNS, columns)
        block, triangle = weight[begin:end], factor[begin:end, begin:end]
        errors = torch.empty_like(block)
        for row in range(end - begin):
            place = begin + row
            grid = grids.at(place, group_of_place[place], block, row)
            column = block[row].unsqueeze(-1)
            code = grid.codes(column, max_code)
            errors[row] = (column - grid.values(code)).squeeze(-1) / pivots[place]
            block[row:].addr_(triangle[row, row:], errors[row], alpha=-1.0)
            codes[place] = code.squeeze(-1)
        weight[end:].addmm_(factor[begin:end, end:].T, errors, alpha=-1.0)
    return codes
