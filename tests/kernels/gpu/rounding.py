"""How far rows rounded to 8 bits may be from what was rounded; it knows no kernel."""

from torch import Tensor


def quantization_error(expected: Tensor, kind: str) -> float:
    """The most that ||rounded - expected|| / ||expected|| can be expected to be.

    An e4m3 is off by up to 1/16 of itself, uniformly: 1/16 / sqrt(3) where every mantissa is 1.0, less elsewhere. An
    int8's step is absmax / 127 of its row, which grows with the row's width, and uniform errors have step / sqrt(12) as
    their root mean square; a tenth is added.
    """
    if kind == "fp8":
        return 1 / 16 / 3**0.5
    step = expected.abs().amax(dim=1) / 127
    return 1.1 * float((step.square().sum() * expected.shape[1] / 12).sqrt() / expected.norm())
