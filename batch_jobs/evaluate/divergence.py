"""How far two models' predictions of the same tokens lie apart: log likelihood, KL and top-1; it runs no model.

For a row with logits a of the reference and b of the variant: KL(softmax(a) || softmax(b)) = sum p (a - b) - (log Za -
log Zb), in nats. Exponentials are fp32 and every sum over the vocabulary fp64, which keeps a row within 1e-7 of the
same computed in fp64 throughout at a quarter of its time (measured on 64 x 49,152), and makes it exactly 0 for a = b.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from batch_jobs.perplexity import Perplexity, Window
from engine.scoring import WindowScorer

ROWS_AT_ONCE = 64
"""Of temporaries: 64 x 128,256 x 8 bytes are 66 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """Sums over the tokens that count."""

    num_tokens: int = 0
    log_likelihood: float = 0.0
    """Of the variant, in nats."""
    kl: float = 0.0
    """KL(reference || variant), in nats."""
    agreements: int = 0
    """Rows whose likeliest token is the reference's; of equal logits the first counts."""

    def __add__(self, other: Divergence) -> Divergence:
        return Divergence(
            num_tokens=self.num_tokens + other.num_tokens,
            log_likelihood=self.log_likelihood + other.log_likelihood,
            kl=self.kl + other.kl,
            agreements=self.agreements + other.agreements,
        )

    @property
    def perplexity(self) -> float:
        return Perplexity(log_likelihood=self.log_likelihood, num_tokens=self.num_tokens).value


def walk(
    variant: WindowScorer, reference: WindowScorer | None, token_ids: list[int], windows: Iterable[Window]
) -> Iterator[Divergence]:
    """Each window's own, both models in step; without a reference the variant is compared with itself."""
    for window in windows:
        tokens = token_ids[window.begin : window.end]
        rows = variant.logits(tokens, window.num_scored)
        others = None if reference is None else reference.logits(tokens, window.num_scored)
        yield _window_divergence(rows, others, tokens[-window.num_scored :])


def _window_divergence(rows: Iterator[Tensor], others: Iterator[Tensor] | None, targets: list[int]) -> Divergence:
    found, start = Divergence(), 0
    for piece in rows:
        other = piece if others is None else next(others)
        for first in range(0, len(piece), ROWS_AT_ONCE):
            part = piece[first : first + ROWS_AT_ONCE]
            expected = targets[start + first : start + first + len(part)]
            found += compare(part, other[first : first + ROWS_AT_ONCE], expected)
        start += len(piece)
    if not math.isfinite(found.log_likelihood + found.kl):
        raise ArithmeticError("the model's output is not finite: its weights are damaged")
    return found


def compare(logits: Tensor, reference: Tensor, targets: list[int]) -> Divergence:
    """[R, vocab] fp32 of a variant and of the reference, and the R tokens that came."""
    own = logits.gather(1, torch.tensor(targets, device=logits.device)[:, None])
    normaliser, normaliser_r = _normaliser(logits), _normaliser(reference)
    probabilities = (reference - normaliser_r.float()).exp_()
    mean_difference = probabilities.mul_(reference - logits).sum(dim=1, dtype=torch.float64)
    kl = mean_difference - (normaliser_r - normaliser)[:, 0]
    return Divergence(
        num_tokens=len(targets),
        log_likelihood=float((own - normaliser).sum()),
        kl=float(kl.sum()),
        agreements=int((logits.argmax(dim=1) == reference.argmax(dim=1)).sum()),
    )


def _normaliser(logits: Tensor) -> Tensor:
    """log Z: [R, 1] fp64"""
    largest = logits.amax(dim=1, keepdim=True)
    return (logits - largest).exp_().sum(dim=1, keepdim=True, dtype=torch.float64).log_() + largest
