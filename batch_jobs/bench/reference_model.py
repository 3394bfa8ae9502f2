"""A checkpoint in fp32 under transformers whose block products can be exchanged; it knows no quantisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from batch_jobs.perplexity import Window, windows

Product = Callable[[str, Tensor], Tensor]
"""A linear's name and its input [M, K] -> its output [M, N]."""


class ReferenceModel:
    """The experiments' model; the head and the embedding stay as they are, as in the papers."""

    def __init__(self, folder: Path, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        disable_progress_bar()
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.linears: dict[str, nn.Linear] = {
            name: module
            for name, module in self._model.model.layers.named_modules(prefix="model.layers")
            if isinstance(module, nn.Linear)
        }

    def perplexity(self, token_ids: list[int], context: int) -> float:
        """exp of the mean negative log likelihood over disjoint windows, as `quantfleet evaluate` counts it."""
        pieces = list(windows(len(token_ids), context, context))
        nats = math.fsum(self._nats(window, token_ids) for window in pieces)
        return math.exp(nats / sum(window.num_scored for window in pieces))

    def weights(self) -> dict[str, Tensor]:
        return {name: linear.weight.detach() for name, linear in self.linears.items()}

    @contextmanager
    def with_weights(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """[N, K] in the place of those of the same names, inside."""
        before = {name: self.linears[name].weight.data for name in weights}
        for name, weight in weights.items():
            self.linears[name].weight.data = weight.float()
        try:
            yield
        finally:
            for name, weight in before.items():
                self.linears[name].weight.data = weight

    @contextmanager
    def with_products(self, product: Product) -> Iterator[None]:
        """Every block linear computed by `product`, inside."""

        def forward(name: str) -> Callable[[Tensor], Tensor]:
            return lambda x: product(name, x.flatten(0, -2)).unflatten(0, x.shape[:-1])

        for name, linear in self.linears.items():
            linear.forward = forward(name)
        try:
            yield
        finally:
            for linear in self.linears.values():
                del linear.forward

    def input_magnitudes(self, samples: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """The mean of |x| of each channel, [K] by linear, over samples of token ids."""
        sums: dict[str, Tensor] = {}

        def product(name: str, x: Tensor) -> Tensor:
            sums[name] = sums.get(name, 0) + x.abs().sum(dim=0)
            return x @ self.linears[name].weight.T

        with self.with_products(product):
            for sample in samples:
                self._hidden(sample)
        count = sum(map(len, samples))
        return {name: total / count for name, total in sums.items()}

    def _hidden(self, token_ids: Sequence[int]) -> Tensor:
        """[T, hidden]"""
        with torch.inference_mode():
            return self._model.model(input_ids=torch.tensor([list(token_ids)])).last_hidden_state[0]

    def _nats(self, window: Window, token_ids: list[int]) -> float:
        """The summed negative log likelihood of the tokens that the window scores."""
        with torch.inference_mode():
            hidden = self._hidden(token_ids[window.begin : window.end])
            targets = torch.tensor(token_ids[window.end - window.num_scored : window.end])
            logits = self._model.lm_head(hidden[-window.num_scored - 1 : -1])
            return float(cross_entropy(logits, targets, reduction="sum"))
