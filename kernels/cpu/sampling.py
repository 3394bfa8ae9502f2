"""Draws a token from each row of logits, on raw bytes; it depends on the row's logits, parameters and counter alone.

Nothing is sorted: the cut of top-k and top-p is found by a radix search over the bits of the probabilities.
"""

import math

import numpy as np

from kernels.cpu.compile import inline, kernel
from kernels.cpu.exponential import exp
from kernels.cpu.simd import (
    LANES,
    add,
    f32_bits,
    f32_of_bits,
    get_f32,
    get_f64,
    get_i32,
    get_i64,
    lane_max,
    lane_sum,
    less,
    load_f32,
    mask_bits,
    maximum,
    mul,
    select,
    set_f32,
    set_f64,
    set_i32,
    set_i64,
    splat_f32,
    store_f32,
    sub,
)

ALL_LANES = (1 << LANES) - 1
LOWEST, HIGHEST, ZERO, ONE = np.float32(-np.inf), np.float32(np.inf), np.float32(0), np.float32(1)
# the first look for a cut leaves out smaller probabilities than this one (relative to the largest)
USUAL_FLOOR = np.float32(2.0**-24)
BIN_BITS, BINS = 10, 1024
# float32 words of a thread's scratch beside its three rows
BIN_FLOATS = 2 * BINS
# columns of the two parameter tables, one row a row of logits
TEMPERATURE, TOP_P, MIN_P, REPETITION, PRESENCE, FREQUENCY, FLOATS = 0, 1, 2, 3, 4, 5, 6
SEED, POSITION, TOP_K, TOKENS, OUTPUT, TOKENS_END, BIAS, BIAS_END, INTEGERS = 0, 1, 2, 3, 4, 5, 6, 7, 8
CHUNK = 64 * LANES


@inline
def _largest(values, count) -> float:
    lanes = splat_f32(LOWEST)
    for i in range(0, count, LANES):
        lanes = maximum(load_f32(values + 4 * i), lanes)
    return lane_max(lanes)


@inline
def _first_not_less(values, count, bound) -> int:
    """The lowest index whose value is at least `bound`."""
    limit = splat_f32(bound)
    for i in range(0, count, LANES):
        bits = mask_bits(less(load_f32(values + 4 * i), limit)) ^ ALL_LANES
        if bits != 0:
            lane = 0
            while (bits >> lane) & 1 == 0:
                lane += 1
            return i + lane
    return 0


@inline
def _exponentials(logits, count, largest, inverse_temperature, out) -> None:
    """out = e^((logit - largest) / temperature)"""
    top, scale = splat_f32(largest), splat_f32(inverse_temperature)
    for i in range(0, count, LANES):
        store_f32(out + 4 * i, exp(mul(sub(load_f32(logits + 4 * i), top), scale)))


@inline
def _mass(p, start, end, floor) -> float:
    """The sum of the probabilities that are at least `floor`."""
    low, zero = splat_f32(floor), splat_f32(ZERO)
    lanes = zero
    for i in range(start, end, LANES):
        values = load_f32(p + 4 * i)
        lanes = add(lanes, select(less(values, low), zero, values))
    return np.float64(lane_sum(lanes))


@inline
def _total_mass(p, count, floor) -> float:
    total = 0.0
    for start in range(0, count, CHUNK):
        total += _mass(p, start, min(count, start + CHUNK), floor)
    return total


@inline
def _log_sum_exp(logits, count, largest) -> float:
    total = 0.0
    top = splat_f32(largest)
    for start in range(0, count, CHUNK):
        lanes = splat_f32(ZERO)
        for i in range(start, min(count, start + CHUNK), LANES):
            lanes = add(lanes, exp(sub(load_f32(logits + 4 * i), top)))
        total += np.float64(lane_sum(lanes))
    return np.float64(largest) + math.log(total)


@inline
def _fill_bins(p, count, low, high, shift, by_mass, bins) -> None:
    """Add each p in [low, high) to the bin of its bits from `shift` up: its mass, or one."""
    for i in range(BINS):
        set_f64(bins + 8 * i, 0.0)
    lows, highs = splat_f32(low), splat_f32(high)
    for i in range(0, count, LANES):
        values = load_f32(p + 4 * i)
        inside = mask_bits(less(values, highs)) & (mask_bits(less(values, lows)) ^ ALL_LANES)
        lane = 0
        while inside != 0:
            if inside & 1:
                value = get_f32(p + 4 * (i + lane))
                entry = bins + 8 * ((np.int64(f32_bits(value)) >> shift) & (BINS - 1))
                set_f64(entry, get_f64(entry) + (np.float64(value) if by_mass else 1.0))
            inside >>= 1
            lane += 1


@inline
def _cut(p, count, floor, target, by_mass, bins) -> float:
    """The largest value v such that the p >= v amount to `target` (their mass, or their number); `floor` if none do.

    Looks at the usual floor's probabilities first: most of a vocabulary lies below it.
    """
    bound = max(floor, USUAL_FLOOR)
    prefix, reached, low, high, level = 0, 0.0, bound, HIGHEST, 0
    while level < 3:
        shift = BIN_BITS * (2 - level)
        _fill_bins(p, count, low, high, shift, by_mass, bins)
        entry = BINS - 1
        while entry >= 0:
            amount = get_f64(bins + 8 * entry)
            if amount > 0.0 and reached + amount >= target:
                break
            reached += amount
            entry -= 1
        if entry < 0:
            if level > 0 or bound == floor:
                return low
            prefix, reached, low, bound = 0, 0.0, floor, floor
            continue
        prefix = (prefix << BIN_BITS) | entry
        low = max(bound, f32_of_bits(prefix << shift))
        high = f32_of_bits((prefix + 1) << shift)
        level += 1
    return low


@inline
def _uniform(seed, position) -> float:
    """Uniform in [0, 1), 53 bits: splitmix64 of the seed, then of that and the position."""
    state = np.uint64(seed)
    for number in range(2):
        state = state + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
        if number == 0:
            state = state ^ np.uint64(position)
    return np.float64(np.int64(state >> np.uint64(11))) * 2.0**-53


@inline
def _draw(p, count, floor, uniform) -> int:
    """The token at `uniform` of the cumulative mass, in the order of ids."""
    remaining = uniform * _total_mass(p, count, floor)
    last = 0
    for start in range(0, count, CHUNK):
        end = min(count, start + CHUNK)
        mass = _mass(p, start, end, floor)
        if mass <= 0.0:
            continue
        if remaining >= mass:
            remaining -= mass
            last = end
            continue
        for i in range(start, end):
            value = get_f32(p + 4 * i)
            if value >= floor and value > ZERO:
                last = i + 1
                remaining -= np.float64(value)
                if remaining < 0.0:
                    return i
        # the chunk's mass was summed in another order; its last token takes the rounding
        return last - 1
    while last > 0 and not (get_f32(p + 4 * (last - 1)) >= floor and get_f32(p + 4 * (last - 1)) > ZERO):
        last -= 1
    return last - 1


@inline
def _sample(logits, count, floats, integers, p, bins) -> int:
    largest = _largest(logits, count)
    _exponentials(logits, count, largest, ONE / get_f32(floats + 4 * TEMPERATURE), p)
    floor = get_f32(floats + 4 * MIN_P)
    k, top_p = get_i64(integers + 8 * TOP_K), get_f32(floats + 4 * TOP_P)
    if 0 < k < count:
        floor = max(floor, _cut(p, count, floor, np.float64(k), False, bins))
    if top_p < ONE:
        target = np.float64(top_p) * _total_mass(p, count, floor)
        floor = max(floor, _cut(p, count, floor, target, True, bins))
    uniform = _uniform(get_i64(integers + 8 * SEED), get_i64(integers + 8 * POSITION))
    return _draw(p, count, floor, uniform)


@inline
def _add_bias(logits, integers, ids, values) -> None:
    for i in range(get_i64(integers + 8 * BIAS), get_i64(integers + 8 * BIAS_END)):
        entry = logits + 4 * np.int64(get_i32(ids + 4 * i))
        set_f32(entry, get_f32(entry) + get_f32(values + 4 * i))


@inline
def _penalise(logits, floats, integers, tokens, counts) -> None:
    """Repetition over prompt and output, presence and frequency over the output, each distinct token once."""
    repetition = get_f32(floats + 4 * REPETITION)
    presence, frequency = get_f32(floats + 4 * PRESENCE), get_f32(floats + 4 * FREQUENCY)
    start, end = get_i64(integers + 8 * TOKENS), get_i64(integers + 8 * TOKENS_END)
    for i in range(start, end):
        set_i32(counts + 4 * np.int64(get_i32(tokens + 4 * i)), np.int32(0))
    for i in range(get_i64(integers + 8 * OUTPUT), end):
        entry = counts + 4 * np.int64(get_i32(tokens + 4 * i))
        set_i32(entry, np.int32(get_i32(entry) + 1))
    for i in range(start, end):
        token = np.int64(get_i32(tokens + 4 * i))
        count = get_i32(counts + 4 * token)
        if count < 0:
            continue
        set_i32(counts + 4 * token, np.int32(-1))
        value = get_f32(logits + 4 * token)
        value = value / repetition if value > ZERO else value * repetition
        if count > 0:
            value -= presence + frequency * np.float32(count)
        set_f32(logits + 4 * token, value)


@inline
def _top_logits(logits, count, number, ids, values) -> None:
    """The `number` largest, in order, the lower id first among equals."""
    for i in range(number):
        set_f32(values + 4 * i, LOWEST)
        set_i64(ids + 8 * i, 0)
    for i in range(0, count, LANES):
        least = splat_f32(get_f32(values + 4 * (number - 1)))
        above = mask_bits(less(least, load_f32(logits + 4 * i)))
        lane = 0
        while above != 0:
            value = get_f32(logits + 4 * (i + lane))
            if above & 1 and value > get_f32(values + 4 * (number - 1)):
                place = number - 1
                while place > 0 and get_f32(values + 4 * (place - 1)) < value:
                    set_f32(values + 4 * place, get_f32(values + 4 * (place - 1)))
                    set_i64(ids + 8 * place, get_i64(ids + 8 * (place - 1)))
                    place -= 1
                set_f32(values + 4 * place, value)
                set_i64(ids + 8 * place, i + lane)
            above >>= 1
            lane += 1


@kernel
def sample_rows(args, item, worker) -> None:
    logits, count, floats, integers = args[0], args[1], args[2], args[3]
    tokens, bias_ids, bias_values = args[4], args[5], args[6]
    out, logprobs, top_ids, top_logprobs, number = args[7], args[8], args[9], args[10], args[11]
    changed = args[12] + worker * (3 * count + BIN_FLOATS) * 4
    p, counts, bins = changed + 4 * count, changed + 8 * count, changed + 12 * count
    raw = logits + item * 4 * count
    floats, integers = floats + item * 4 * FLOATS, integers + item * 8 * INTEGERS
    has_bias = get_i64(integers + 8 * BIAS) < get_i64(integers + 8 * BIAS_END)
    has_tokens = get_i64(integers + 8 * TOKENS) < get_i64(integers + 8 * TOKENS_END)
    row = raw
    if has_bias or has_tokens:
        row = changed
        for i in range(0, count, LANES):
            store_f32(row + 4 * i, load_f32(raw + 4 * i))
        _add_bias(row, integers, bias_ids, bias_values)
        if has_tokens:
            _penalise(row, floats, integers, tokens, counts)
    if get_f32(floats + 4 * TEMPERATURE) > ZERO:
        token = _sample(row, count, floats, integers, p, bins)
    else:
        token = _first_not_less(row, count, _largest(row, count))
    set_i64(out + 8 * item, token)
    if logprobs != 0:
        norm = _log_sum_exp(raw, count, _largest(raw, count))
        set_f32(logprobs + 4 * item, np.float32(np.float64(get_f32(raw + 4 * token)) - norm))
        if number > 0:
            values = top_logprobs + item * 4 * number
            _top_logits(raw, count, number, top_ids + item * 8 * number, values)
            for i in range(number):
                set_f32(values + 4 * i, np.float32(np.float64(get_f32(values + 4 * i)) - norm))
