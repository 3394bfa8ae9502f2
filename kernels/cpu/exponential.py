"""e^x on sixteen lanes: a polynomial, so the same bits on every call; within 2 units in the last place of fp32."""

import numpy as np

from kernels.cpu.compile import inline
from kernels.cpu.simd import (
    Vector,
    add_i32,
    as_f32,
    fma,
    less,
    maximum,
    minimum,
    mul,
    round_even,
    select,
    shift_left,
    splat_f32,
    splat_i32,
    to_i32,
)

LOWEST, HIGHEST = np.float32(-87.0), np.float32(88.0)
LOG2_E = np.float32(1.44269504088896341)
# ln 2 in two parts (Cephes): the first has few bits, so that n * LN2_HIGH is exact
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
C0, C1, C2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
C3, C4, C5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
ZERO, ONE = np.float32(0), np.float32(1)
EXPONENT_BIAS, MANTISSA_BITS = np.int32(127), np.int32(23)


@inline
def exp(x) -> Vector:
    """e^x; 0 below -87 (so e^-inf is 0), e^88 above 88; e^0 is 1 exactly."""
    clamped = minimum(maximum(x, splat_f32(LOWEST)), splat_f32(HIGHEST))
    n = round_even(mul(clamped, splat_f32(LOG2_E)))
    r = fma(n, splat_f32(-LN2_LOW), fma(n, splat_f32(-LN2_HIGH), clamped))
    p = fma(splat_f32(C0), r, splat_f32(C1))
    p = fma(p, r, splat_f32(C2))
    p = fma(p, r, splat_f32(C3))
    p = fma(p, r, splat_f32(C4))
    p = fma(p, r, splat_f32(C5))
    p = fma(p, mul(r, r), fma(splat_f32(ONE), r, splat_f32(ONE)))
    power = shift_left(add_i32(to_i32(n), splat_i32(EXPONENT_BIAS)), splat_i32(MANTISSA_BITS))
    return select(less(x, splat_f32(LOWEST)), splat_f32(ZERO), mul(p, as_f32(power)))
