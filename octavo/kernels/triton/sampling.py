"""Sampling on the GPU: logits are adjusted, searched and drawn from, and nothing waits for the host.

Weights are 2^((logit - best) log2(e) / temperature) in float32, turned into integers of 2^-39 of the best one's. Sums
of integers do not depend on their order, so a draw depends on its row alone, whatever the batch and however a row is
split; a token less likely than 2^-39 of the best one is never drawn. All else is as `kernels.draws` says: the same
numbers as on a CPU find, but for rounding, the same tokens. (Gumbel's trick would need one pass less and no sums, at
the price of other tokens than a CPU's for the same seed, and of a random number for each token of the vocabulary.)

Nothing is sorted. Non-negative floats are ordered like their bits, so the place where a sum over the best tokens passes
a limit is a weight, found by bisection on its bits; top-k, top-p and the draw itself are three such searches. Counts
and sums at 16 fixed levels bracket each, and say which tokens could matter: up to 4,096 of them are gathered and only
they are searched; where there are more, the whole row is.

A row is cut into tiles of the vocabulary: grids depend on the number of rows and on V alone.

R rows, V vocabulary, T tiles of a row, D draws of all rows, L levels, M sequences whose tokens are counted, S steered
ones, G masks of a step, Q rows that report log-probabilities, P draws of those.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.draws import IN_PROMPT, Adjustments, DeviceDraws, Draws, Report
from octavo.kernels.triton.gpu import gpu

_TILE = 2048
_ROOM = 4096
_SEARCHERS = 512  # threads that search a row
_LOG2E = tl.constexpr(math.log2(math.e))
_UNIT = tl.constexpr(float(1 << 39))  # of the best weight
_LEAST = tl.constexpr(2.0**-39)
_LEVELS = tl.constexpr(16)
_COUNT = tl.constexpr(51)  # bits for the sum of a tile's weights; above them their number
_COUNT_ONE = tl.constexpr(1 << 51)
_ONE_BITS = tl.constexpr(0x3F800000)  # those of 1.0
_IN_PROMPT = tl.constexpr(IN_PROMPT)


# ---- Parts of kernels ----


@triton.jit
def _largest(x):
    """NaN where there is one."""
    known = x == x
    largest = tl.max(tl.where(known, x, float("-inf")), 0)
    return tl.where(tl.min(known.to(tl.int32), 0) > 0, largest, float("nan"))


@triton.jit
def _peak_of(peak_ptr, tiles, TILES: tl.constexpr):
    """The best logit of a row from those of its tiles."""
    tile = tl.arange(0, TILES)
    peak_T = tl.load(peak_ptr + tile, mask=tile < tiles, other=float("-inf"))
    return _largest(peak_T)


@triton.jit
def _finite(x):
    return (x > float("-inf")) & (x < float("inf"))


@triton.jit
def _or_zero(x):
    """What logits are taken to be relative to where the best is x, though it be -inf."""
    return tl.where(x > float("-inf"), x, 0.0)


@triton.jit
def _weight(logit, peak, scale, min_p):
    """0 for what is never drawn."""
    weight = tl.minimum(tl.exp2((logit - peak) * scale), 1.0)
    return tl.where((weight >= min_p) & (weight >= _LEAST), weight, 0.0)


@triton.jit
def _mass(weight):
    return (weight * _UNIT).to(tl.int64)


@triton.jit
def _restricted(top_k, top_p, vocabulary):
    return ((top_k > 0) & (top_k < vocabulary)) | (top_p < 1.0)


@triton.jit
def _level_bits(level):
    """Level l takes in weights of 2^-(l+1) and more; the last one all that may be drawn."""
    return tl.where(level < _LEVELS - 1, (126 - level) << 23, 1)


@triton.jit
def _uniform(seed, position):
    """As `kernels.philox.uniform`."""
    low_word = (position & 0xFFFFFFFF).to(tl.uint32)
    high_word = (position >> 32).to(tl.uint32)
    low, high, _, _ = tl.philox(seed, low_word, high_word, low_word * 0, low_word * 0)
    bits = ((high.to(tl.uint64) << 32) | low.to(tl.uint64)) >> 11
    return bits.to(tl.float64) * (2.0**-53)


@triton.jit
def _quotient(a, b):
    """a // b, that is less than 2^20: guessed, then corrected. A division of 64 bits would be a call."""
    guess = (a.to(tl.float32) / b.to(tl.float32)).to(tl.int64)
    rest = a - guess * b
    return tl.where(rest < 0, guess - 1, tl.where(rest >= b, guess + 1, guess))


@triton.jit
def _find(values_ptr, count, peak, scale, min_p, limit, counts_L, masses_L, BY_COUNT: tl.constexpr, TILE: tl.constexpr):
    """The bits of the largest weight such that the weights from it on are more than `limit`, in number or in sum.

    Also the number and the sum of those above it. The levels' counts and sums bracket it; all of them are more.
    """
    bits_L = _level_bits(tl.arange(0, _LEVELS))
    beyond_L = (counts_L if BY_COUNT else masses_L) > limit
    low = tl.max(tl.where(beyond_L, bits_L, 1), 0)
    high = tl.min(tl.where(beyond_L, _ONE_BITS + 1, bits_L), 0)
    above = tl.max(tl.where(beyond_L, 0, counts_L), 0)
    above_mass = tl.max(tl.where(beyond_L, 0, masses_L), 0)
    while high - low > 1:  # four parts at a time: a pass over the values costs more than three sums
        step = (high - low + 3) // 4
        a = low + step
        b = tl.minimum(a + step, high)
        c = tl.minimum(b + step, high)
        mass_a = tl.zeros([TILE], tl.int64)
        mass_b = tl.zeros([TILE], tl.int64)
        mass_c = tl.zeros([TILE], tl.int64)
        count_a = tl.zeros([TILE], tl.int32)
        count_b = tl.zeros([TILE], tl.int32)
        count_c = tl.zeros([TILE], tl.int32)
        for begin in range(0, count, TILE):
            place = begin + tl.arange(0, TILE)
            weight = _weight(tl.load(values_ptr + place, mask=place < count, other=float("-inf")), peak, scale, min_p)
            mass = _mass(weight)
            bits = weight.to(tl.int32, bitcast=True)
            mass_a += tl.where(bits >= a, mass, 0)
            mass_b += tl.where(bits >= b, mass, 0)
            mass_c += tl.where(bits >= c, mass, 0)
            if BY_COUNT:
                count_a += (bits >= a).to(tl.int32)
                count_b += (bits >= b).to(tl.int32)
                count_c += (bits >= c).to(tl.int32)
        all_a, all_b, all_c = tl.sum(mass_a, 0), tl.sum(mass_b, 0), tl.sum(mass_c, 0)
        number_a, number_b, number_c = tl.sum(count_a, 0), tl.sum(count_b, 0), tl.sum(count_c, 0)
        in_a = (number_a if BY_COUNT else all_a) > limit
        in_b = (number_b if BY_COUNT else all_b) > limit
        in_c = (number_c if BY_COUNT else all_c) > limit
        low = tl.where(in_c, c, tl.where(in_b, b, tl.where(in_a, a, low)))
        high = tl.where(in_c, high, tl.where(in_b, c, tl.where(in_a, b, a)))
        above_mass = tl.where(in_c, above_mass, tl.where(in_b, all_c, tl.where(in_a, all_b, all_a)))
        if BY_COUNT:
            above = tl.where(in_c, above, tl.where(in_b, number_c, tl.where(in_a, number_b, number_a)))
    return low, above, above_mass


@triton.jit
def _nth(values_ptr, count, peak, scale, min_p, bits, nth, TILE: tl.constexpr):
    """Where the nth of the values stands whose weight has these bits."""
    begin = 0
    found = -1
    while (found < 0) & (begin < count):
        place = begin + tl.arange(0, TILE)
        logit = tl.load(values_ptr + place, mask=place < count, other=float("-inf"))
        same = (_weight(logit, peak, scale, min_p).to(tl.int32, bitcast=True) == bits).to(tl.int32)
        number = tl.sum(same, 0)
        rank = tl.cumsum(same, 0) - same
        here = tl.max(tl.where((same > 0) & (rank == nth), place, -1), 0)
        found = tl.where(nth < number, here, found)
        nth -= number
        begin += TILE
    return tl.maximum(found, 0)


@triton.jit
def _kept(values_ptr, count, peak, scale, min_p, top_k, top_p, counts_L, masses_L, TILE: tl.constexpr):
    """The sum of the weights that top-k and then top-p leave."""
    number = tl.max(counts_L, 0)
    kept = tl.max(masses_L, 0)
    if (top_k > 0) & (top_k < number):
        bits, above, above_mass = _find(
            values_ptr, count, peak, scale, min_p, top_k - 1, counts_L, masses_L, True, TILE
        )
        kept = above_mass + (top_k - above) * _mass(bits.to(tl.float32, bitcast=True))
    if top_p < 1.0:
        share = top_p.to(tl.float64) * kept.to(tl.float64)
        goal = share.to(tl.int64)
        goal += (goal.to(tl.float64) < share).to(tl.int64)
        goal = tl.minimum(tl.maximum(goal, 1), kept)
        bits, above, above_mass = _find(
            values_ptr, count, peak, scale, min_p, goal - 1, counts_L, masses_L, False, TILE
        )
        mass = _mass(bits.to(tl.float32, bitcast=True))
        kept = above_mass + _quotient(goal - above_mass + mass - 1, mass) * mass
    return kept


@triton.jit
def _draw_any(
    logits_ptr, mass_ptr, peak, scale, min_p, position, first, end, seeds_D, tokens_D, vocabulary, tiles,
    TILES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """In the vocabulary's order: first the tile, then the token in it."""
    tile = tl.arange(0, TILES)
    mass_T = tl.load(mass_ptr + tile, mask=tile < tiles, other=0)
    sum_T = tl.cumsum(mass_T, 0)
    total = tl.sum(mass_T, 0)
    for draw in range(first, end):
        number = _uniform(tl.load(seeds_D + draw), position)
        target = tl.minimum((number * total.to(tl.float64)).to(tl.int64), total - 1)
        begin = tl.sum((sum_T <= target).to(tl.int32), 0) * TILE
        rest = target - tl.max(tl.where(sum_T <= target, sum_T, 0), 0)
        token = begin + tl.arange(0, TILE)
        logit = tl.load(logits_ptr + token, mask=token < vocabulary, other=float("-inf"))
        sums = tl.cumsum(_mass(_weight(logit, peak, scale, min_p)), 0)
        drawn = tl.minimum(begin + tl.sum((sums <= rest).to(tl.int32), 0), vocabulary - 1)
        tl.store(tokens_D + draw, drawn.to(tl.int64))


@triton.jit
def _draw_best(
    values_ptr, ids_ptr, count, counts_L, masses_L, peak, scale, min_p, top_k, top_p, position, first, end,
    seeds_D, tokens_D, LISTED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Best first. LISTED: the values are some of the row's, of the tokens in ids, not all of it."""
    kept = _kept(values_ptr, count, peak, scale, min_p, top_k, top_p, counts_L, masses_L, TILE)
    for draw in range(first, end):
        number = _uniform(tl.load(seeds_D + draw), position)
        target = tl.minimum((number * kept.to(tl.float64)).to(tl.int64), kept - 1)
        bits, _, above = _find(values_ptr, count, peak, scale, min_p, target, counts_L, masses_L, False, TILE)
        nth = _quotient(target - above, _mass(bits.to(tl.float32, bitcast=True)))
        token = _nth(values_ptr, count, peak, scale, min_p, bits, nth, TILE)
        if LISTED:
            token = tl.load(ids_ptr + token)
        tl.store(tokens_D + draw, token.to(tl.int64))


# ---- Kernels ----


@triton.jit
def _adjust_kernel(
    raw_ptr,
    out_ptr,
    raw_stride,
    out_stride,
    peak_ptr,
    best_ptr,
    steering_R,
    mask_R,
    said_R,
    repetition_R,
    presence_R,
    frequency_R,
    steering_ptr,
    masks_ptr,
    said_ptr,
    vocabulary,
    tiles,
    words,
    ADJUST: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    token = tile * TILE + tl.arange(0, TILE)
    inside = token < vocabulary
    x = tl.load(raw_ptr + row * raw_stride + token, mask=inside, other=float("-inf"))
    if ADJUST:
        steering = tl.load(steering_R + row).to(tl.int64)
        if steering >= 0:
            bias = tl.load(steering_ptr + steering * vocabulary + token, mask=inside, other=0.0)
            x = tl.where(bias == float("-inf"), bias, x + bias)
        mask = tl.load(mask_R + row).to(tl.int64)
        if mask >= 0:
            word = tl.load(masks_ptr + mask * words + token // 32, mask=inside, other=0)
            x = tl.where((word >> (token % 32)) & 1 != 0, x, x + float("-inf"))
        said = tl.load(said_R + row).to(tl.int64)
        if said >= 0:
            times = tl.load(said_ptr + said * vocabulary + token, mask=inside, other=0)
            repetition = tl.load(repetition_R + row)
            x = tl.where(times > 0, tl.where(x > 0, x / repetition, x * repetition), x)
            times = times & (_IN_PROMPT - 1)
            penalty = tl.load(frequency_R + row) * times.to(tl.float32) + tl.load(presence_R + row)
            x = tl.where(times > 0, x - penalty, x)
        tl.store(out_ptr + row * out_stride + token, x, mask=inside)
    peak = _largest(x)
    best = tl.min(tl.where(x == peak, token, vocabulary), 0)
    tl.store(peak_ptr + row * tiles + tile, peak)
    tl.store(best_ptr + row * tiles + tile, best)


@triton.jit
def _weigh_kernel(
    logits_ptr,
    stride,
    temperature_R,
    min_p_R,
    top_p_R,
    top_k_R,
    first_R1,
    peak_ptr,
    mass_ptr,
    level_ptr,
    vocabulary,
    tiles,
    TILES: tl.constexpr,
    TILE: tl.constexpr,
):
    """The sum of a tile's weights; of a restricted row's also number and sum of those of each level."""
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    temperature = tl.load(temperature_R + row)
    peak = _peak_of(peak_ptr + row * tiles, tiles, TILES)
    draws = tl.load(first_R1 + row + 1) - tl.load(first_R1 + row)
    if (temperature > 0) & (draws > 0) & _finite(peak):
        token = tile * TILE + tl.arange(0, TILE)
        logit = tl.load(logits_ptr + row * stride + token, mask=token < vocabulary, other=float("-inf"))
        weight = _weight(logit, peak, _LOG2E / temperature, tl.load(min_p_R + row))
        mass = _mass(weight)
        tl.store(mass_ptr + row * tiles + tile, tl.sum(mass, 0))
        if _restricted(tl.load(top_k_R + row), tl.load(top_p_R + row), vocabulary):
            bits = weight.to(tl.int32, bitcast=True)
            packed = tl.where(bits > 0, mass | _COUNT_ONE, 0)
            place = level_ptr + (row * tiles + tile) * _LEVELS
            for level in tl.static_range(_LEVELS):
                tl.store(place + level, tl.sum(tl.where(bits >= _level_bits(level), packed, 0), 0))


@triton.jit
def _choose_kernel(
    temperature_R,
    top_p_R,
    top_k_R,
    first_R1,
    peak_ptr,
    level_ptr,
    count_ptr,
    sum_ptr,
    chosen_ptr,
    size_ptr,
    start_ptr,
    vocabulary,
    tiles,
    ROOM: tl.constexpr,
    TILES: tl.constexpr,
):
    """Which level holds all that top-k and top-p may leave; its number of tokens (-1: too many); where tiles begin."""
    row = tl.program_id(0).to(tl.int64)
    top_p, top_k = tl.load(top_p_R + row), tl.load(top_k_R + row)
    peak = _peak_of(peak_ptr + row * tiles, tiles, TILES)
    draws = tl.load(first_R1 + row + 1) - tl.load(first_R1 + row)
    size = -1
    if (tl.load(temperature_R + row) > 0) & (draws > 0) & _finite(peak) & _restricted(top_k, top_p, vocabulary):
        tile = tl.arange(0, TILES)
        level = tl.arange(0, _LEVELS)
        place = level_ptr + row * tiles * _LEVELS
        packed = tl.load(place + tile[:, None] * _LEVELS + level[None, :], mask=(tile < tiles)[:, None], other=0)
        counts_L = tl.sum(packed >> _COUNT, 0)
        masses_L = tl.sum(packed & (_COUNT_ONE - 1), 0)
        total = tl.max(masses_L, 0)
        share = top_p.to(tl.float64) * total.to(tl.float64)
        limited = (top_k > 0) & (top_k < vocabulary)
        enough_L = tl.where(limited, counts_L >= top_k, masses_L.to(tl.float64) >= share) | (masses_L == total)
        chosen = tl.min(tl.where(enough_L, level, _LEVELS - 1), 0)
        number = tl.sum(tl.where(level == chosen, counts_L, 0), 0).to(tl.int32)
        size = tl.where(number <= ROOM, number, -1)
        column = tl.load(place + tile * _LEVELS + chosen, mask=tile < tiles, other=0)
        count_T = (column >> _COUNT).to(tl.int32)
        tl.store(count_ptr + row * _LEVELS + level, counts_L)
        tl.store(sum_ptr + row * _LEVELS + level, masses_L)
        tl.store(chosen_ptr + row, chosen)
        tl.store(start_ptr + row * tiles + tile, tl.cumsum(count_T, 0) - count_T, mask=tile < tiles)
    tl.store(size_ptr + row, size)


@triton.jit
def _gather_kernel(
    logits_ptr,
    stride,
    temperature_R,
    min_p_R,
    peak_ptr,
    chosen_ptr,
    size_ptr,
    start_ptr,
    values_ptr,
    ids_ptr,
    vocabulary,
    tiles,
    ROOM: tl.constexpr,
    TILES: tl.constexpr,
    TILE: tl.constexpr,
):
    """The chosen level's tokens and their logits, by rising id."""
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    if tl.load(size_ptr + row) >= 0:
        peak = _peak_of(peak_ptr + row * tiles, tiles, TILES)
        token = tile * TILE + tl.arange(0, TILE)
        logit = tl.load(logits_ptr + row * stride + token, mask=token < vocabulary, other=float("-inf"))
        weight = _weight(logit, peak, _LOG2E / tl.load(temperature_R + row), tl.load(min_p_R + row))
        taken = (weight.to(tl.int32, bitcast=True) >= _level_bits(tl.load(chosen_ptr + row))).to(tl.int32)
        place = row * ROOM + tl.load(start_ptr + row * tiles + tile) + tl.cumsum(taken, 0) - taken
        tl.store(values_ptr + place, logit, mask=taken > 0)
        tl.store(ids_ptr + place, token, mask=taken > 0)


@triton.jit
def _draw_kernel(
    logits_ptr,
    stride,
    temperature_R,
    min_p_R,
    top_p_R,
    top_k_R,
    positions_R,
    first_R1,
    seeds_D,
    said_R,
    last_ptr,
    peak_ptr,
    best_ptr,
    mass_ptr,
    count_ptr,
    sum_ptr,
    size_ptr,
    values_ptr,
    ids_ptr,
    tokens_D,
    peaks_R,
    vocabulary,
    tiles,
    REMEMBER: tl.constexpr,
    ROOM: tl.constexpr,
    TILES: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    peak = _peak_of(peak_ptr + row * tiles, tiles, TILES)
    tl.store(peaks_R + row, peak)
    first, end = tl.load(first_R1 + row), tl.load(first_R1 + row + 1)
    tile = tl.arange(0, TILES)
    peak_T = tl.load(peak_ptr + row * tiles + tile, mask=tile < tiles, other=float("-inf"))
    best_T = tl.load(best_ptr + row * tiles + tile, mask=tile < tiles, other=vocabulary)
    greedy = tl.min(tl.where(peak_T == peak, best_T, vocabulary), 0)
    greedy = tl.where(_finite(peak), greedy, 0)
    temperature = tl.load(temperature_R + row)
    if (temperature > 0) & (end > first) & _finite(peak):
        scale = _LOG2E / temperature
        min_p, top_p, top_k = tl.load(min_p_R + row), tl.load(top_p_R + row), tl.load(top_k_R + row)
        position = tl.load(positions_R + row)
        logits = logits_ptr + row * stride
        if _restricted(top_k, top_p, vocabulary):
            level = row * _LEVELS + tl.arange(0, _LEVELS)
            counts_L, masses_L = tl.load(count_ptr + level), tl.load(sum_ptr + level)
            size = tl.load(size_ptr + row)
            if size >= 0:
                _draw_best(
                    values_ptr + row * ROOM, ids_ptr + row * ROOM, size, counts_L, masses_L, peak, scale, min_p, top_k,
                    top_p, position, first, end, seeds_D, tokens_D, True, TILE,
                )  # fmt: skip
            else:
                _draw_best(
                    logits, ids_ptr, vocabulary, counts_L, masses_L, peak, scale, min_p, top_k, top_p, position,
                    first, end, seeds_D, tokens_D, False, TILE,
                )  # fmt: skip
        else:
            _draw_any(
                logits, mass_ptr + row * tiles, peak, scale, min_p, position, first, end, seeds_D, tokens_D,
                vocabulary, tiles, TILES, TILE,
            )  # fmt: skip
    else:
        for draw in range(first, end):
            tl.store(tokens_D + draw, greedy.to(tl.int64))
    if REMEMBER:
        said = tl.load(said_R + row).to(tl.int64)
        if (said >= 0) & (end > first):
            tl.debug_barrier()
            tl.store(last_ptr + said, tl.load(tokens_D + first))


@triton.jit(do_not_specialize=["count"])
def _count_kernel(said_ptr, last_ptr, rows_E, tokens_E, times_E, count, vocabulary, BLOCK: tl.constexpr):
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = entry < count
    row = tl.load(rows_E + entry, mask=inside, other=0).to(tl.int64)
    token = tl.load(tokens_E + entry, mask=inside, other=0).to(tl.int64)
    token = tl.where(token < 0, tl.load(last_ptr + row, mask=inside & (token < 0), other=0), token)
    times = tl.load(times_E + entry, mask=inside, other=0)
    tl.atomic_add(said_ptr + row * vocabulary + token, times, mask=inside & (token < vocabulary))


@triton.jit
def _tile_kernel(raw_ptr, stride, rows_Q, peak_ptr, best_ptr, sum_ptr, vocabulary, tiles, TILE: tl.constexpr):
    """Of a tile of a reporting row: best logit, its token, and Σ e^(logit - best)."""
    place, tile = tl.program_id(0), tl.program_id(1)
    row = tl.load(rows_Q + place).to(tl.int64)
    token = tile * TILE + tl.arange(0, TILE)
    x = tl.load(raw_ptr + row * stride + token, mask=token < vocabulary, other=float("-inf"))
    x = tl.where(x == x, x, float("-inf"))  # with NaN the row's result is an error
    peak = tl.max(x, 0)
    weights = tl.exp2((x - _or_zero(peak)) * _LOG2E)
    tl.store(peak_ptr + place * tiles + tile, peak)
    tl.store(best_ptr + place * tiles + tile, tl.min(tl.where(x == peak, token, vocabulary), 0))
    tl.store(sum_ptr + place * tiles + tile, tl.sum(weights, 0))


@triton.jit(do_not_specialize=["most"])
def _best_kernel(
    raw_ptr,
    stride,
    rows_Q,
    wanted_Q,
    peak_ptr,
    best_ptr,
    sum_ptr,
    norm_ptr,
    values_ptr,
    ids_ptr,
    most,
    vocabulary,
    tiles,
    TILES: tl.constexpr,
    TILE: tl.constexpr,
):
    """The row's best log-probabilities, falling, equals by their id; and what makes a log-probability of a logit."""
    place = tl.program_id(0)
    row = tl.load(rows_Q + place).to(tl.int64)
    lane = tl.arange(0, TILES)
    present = lane < tiles
    peak_T = tl.load(peak_ptr + place * tiles + lane, mask=present, other=float("-inf"))
    best_T = tl.load(best_ptr + place * tiles + lane, mask=present, other=vocabulary)
    sum_T = tl.load(sum_ptr + place * tiles + lane, mask=present, other=0.0)
    peak = _or_zero(tl.max(peak_T, 0))
    total = tl.sum(sum_T * tl.exp2((peak_T - peak) * _LOG2E), 0)
    log_sum = tl.log(total)
    tl.store(norm_ptr + place * 2, peak)
    tl.store(norm_ptr + place * 2 + 1, log_sum)
    for rank in range(tl.load(wanted_Q + place)):
        value = tl.max(peak_T, 0)
        best = tl.min(tl.where(peak_T == value, best_T, vocabulary), 0)
        best = tl.minimum(best, vocabulary - 1)  # a row with NaN: of no use, but inside
        tl.store(values_ptr + place * most + rank, (value - peak) - log_sum)
        tl.store(ids_ptr + place * most + rank, best)
        tile = best // TILE
        token = tile * TILE + tl.arange(0, TILE)
        x = tl.load(raw_ptr + row * stride + token, mask=token < vocabulary, other=float("-inf"))
        behind = (token < vocabulary) & ((x < value) | ((x == value) & (token > best)))
        following = tl.max(tl.where(behind, x, float("-inf")), 0)
        follower = tl.min(tl.where(behind & (x == following), token, vocabulary), 0)
        peak_T = tl.where(lane == tile, following, peak_T)
        best_T = tl.where(lane == tile, follower, best_T)


@triton.jit
def _rank_kernel(
    raw_ptr, stride, rows_Q, draws_P, place_P, tokens_D, norm_ptr, own_ptr, rank_ptr, vocabulary, TILE: tl.constexpr
):
    """The log-probability of what was drawn; its rank gains the number of better ones in a tile."""
    draw, tile = tl.program_id(0), tl.program_id(1)
    place = tl.load(place_P + draw)
    row = tl.load(rows_Q + place).to(tl.int64)
    drawn = tl.load(tokens_D + tl.load(draws_P + draw))
    own = tl.load(raw_ptr + row * stride + drawn)
    if tile == 0:
        tl.store(own_ptr + draw, (own - tl.load(norm_ptr + place * 2)) - tl.load(norm_ptr + place * 2 + 1))
    token = tile * TILE + tl.arange(0, TILE)
    x = tl.load(raw_ptr + row * stride + token, mask=token < vocabulary, other=float("-inf"))
    tl.atomic_add(rank_ptr + draw, tl.sum((x > own).to(tl.int32), 0))


# ---- Launchers ----


def _tiles(vocabulary: int) -> tuple[int, int, int]:
    """Tokens of a tile, tiles, and the power of two that holds their number."""
    tile = min(_TILE, triton.next_power_of_2(vocabulary))
    tiles = triton.cdiv(vocabulary, tile)
    return tile, tiles, triton.next_power_of_2(tiles)


def draw(
    raw_RV: Tensor,
    draws: DeviceDraws,
    tokens_D: Tensor,
    peaks_R: Tensor,
    adjustments: Adjustments | None,
    adjusted_RV: Tensor | None,
    random: bool,
    restricted: bool,
) -> None:
    rows, vocabulary = raw_RV.shape
    assert raw_RV.dtype is torch.float32
    assert raw_RV.stride(1) == 1
    tile, tiles, tiles_2 = _tiles(vocabulary)
    device = raw_RV.device
    peak_RT = torch.empty((rows, tiles), dtype=torch.float32, device=device)
    best_RT = torch.empty((rows, tiles), dtype=torch.int32, device=device)
    logits_RV = raw_RV if adjustments is None or adjusted_RV is None else adjusted_RV
    _adjust_kernel[(rows, tiles)](
        raw_RV, logits_RV, raw_RV.stride(0), logits_RV.stride(0), peak_RT, best_RT,
        *(adjustments[:9] if adjustments is not None else (None,) * 9),
        vocabulary, tiles, triton.cdiv(vocabulary, 32),
        ADJUST=adjustments is not None, TILE=tile, num_warps=4,
    )  # fmt: skip
    temperature_R, min_p_R, top_p_R, top_k_R, positions_R, first_R1, seeds_D = draws
    mass_RT = torch.empty((rows, tiles), dtype=torch.int64, device=device)
    level_RTL = torch.empty((rows, tiles, _LEVELS.value), dtype=torch.int64, device=device)
    count_RL, sum_RL = torch.empty((2, rows, _LEVELS.value), dtype=torch.int64, device=device)
    chosen_R = torch.empty(rows, dtype=torch.int32, device=device)
    size_R = torch.empty(rows, dtype=torch.int32, device=device)
    start_RT = torch.empty((rows, tiles), dtype=torch.int32, device=device)
    values = torch.empty((rows, _ROOM), dtype=torch.float32, device=device)
    ids = torch.empty((rows, _ROOM), dtype=torch.int32, device=device)
    if random:
        _weigh_kernel[(rows, tiles)](
            logits_RV, logits_RV.stride(0), temperature_R, min_p_R, top_p_R, top_k_R, first_R1,
            peak_RT, mass_RT, level_RTL, vocabulary, tiles, TILES=tiles_2, TILE=tile, num_warps=4,
        )  # fmt: skip
    if random and restricted:
        _choose_kernel[(rows,)](
            temperature_R, top_p_R, top_k_R, first_R1, peak_RT, level_RTL, count_RL, sum_RL, chosen_R, size_R,
            start_RT, vocabulary, tiles, ROOM=_ROOM, TILES=tiles_2, num_warps=4,
        )  # fmt: skip
        _gather_kernel[(rows, tiles)](
            logits_RV, logits_RV.stride(0), temperature_R, min_p_R, peak_RT, chosen_R, size_R, start_RT,
            values, ids, vocabulary, tiles, ROOM=_ROOM, TILES=tiles_2, TILE=tile, num_warps=4,
        )  # fmt: skip
    _draw_kernel[(rows,)](
        logits_RV, logits_RV.stride(0), temperature_R, min_p_R, top_p_R, top_k_R, positions_R, first_R1, seeds_D,
        None if adjustments is None else adjustments.said_R, None if adjustments is None else adjustments.last_M,
        peak_RT, best_RT, mass_RT, count_RL, sum_RL, size_R, values, ids, tokens_D, peaks_R, vocabulary, tiles,
        REMEMBER=adjustments is not None, ROOM=_ROOM, TILES=tiles_2, TILE=tile,
        num_warps=_SEARCHERS // gpu(device).warp_size,
    )  # fmt: skip


def count_tokens(said_MV: Tensor, last_M: Tensor, rows_E: Tensor, tokens_E: Tensor, times_E: Tensor) -> None:
    entries, block = rows_E.size(0), 256
    _count_kernel[(triton.cdiv(entries, block),)](
        said_MV, last_M, rows_E, tokens_E, times_E, entries, said_MV.size(1), BLOCK=block, num_warps=4
    )


def report_logprobs(raw_RV: Tensor, tokens_D: Tensor, wanted: Report) -> None:
    vocabulary, rows = raw_RV.size(1), wanted.rows_Q.size(0)
    tile, tiles, tiles_2 = _tiles(vocabulary)
    device = raw_RV.device
    peak_QT = torch.empty((rows, tiles), dtype=torch.float32, device=device)
    best_QT = torch.empty((rows, tiles), dtype=torch.int32, device=device)
    sum_QT = torch.empty((rows, tiles), dtype=torch.float32, device=device)
    norm_Q2 = torch.empty((rows, 2), dtype=torch.float32, device=device)
    _tile_kernel[(rows, tiles)](
        raw_RV, raw_RV.stride(0), wanted.rows_Q, peak_QT, best_QT, sum_QT, vocabulary, tiles, TILE=tile, num_warps=4
    )
    _best_kernel[(rows,)](
        raw_RV, raw_RV.stride(0), wanted.rows_Q, wanted.wanted_Q, peak_QT, best_QT, sum_QT, norm_Q2,
        wanted.best_QN, wanted.best_ids_QN, wanted.best_QN.size(1), vocabulary, tiles,
        TILES=tiles_2, TILE=tile, num_warps=4,
    )  # fmt: skip
    wanted.rank_P.fill_(1)
    _rank_kernel[(wanted.draws_P.size(0), tiles)](
        raw_RV, raw_RV.stride(0), wanted.rows_Q, wanted.draws_P, wanted.place_P, tokens_D, norm_Q2,
        wanted.own_P, wanted.rank_P, vocabulary, TILE=tile, num_warps=4,
    )  # fmt: skip


def sample(logits_RV: Tensor, draws: Draws) -> tuple[list[int], list[float]]:
    device = logits_RV.device

    def moved(array: object, dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(array).to(dtype).to(device)

    rows = logits_RV.size(0)
    tokens_D = torch.empty(len(draws.seeds_D), dtype=torch.int64, device=device)
    peaks_R = torch.empty(rows, dtype=torch.float32, device=device)
    drawn = draws.temperature_R > 0
    on_device = DeviceDraws(
        moved(draws.temperature_R, torch.float32),
        moved(draws.min_p_R, torch.float32),
        moved(draws.top_p_R, torch.float32),
        moved(draws.top_k_R, torch.int32),
        moved(draws.positions_R, torch.int64),
        moved(draws.first_R1, torch.int32),
        moved(draws.seeds_D.view("int64"), torch.int64),
    )
    restricts = (draws.top_k_R > 0) & (draws.top_k_R < logits_RV.size(1)) | (draws.top_p_R < 1)
    draw(logits_RV, on_device, tokens_D, peaks_R, None, None, bool(drawn.any()), bool((drawn & restricts).any()))
    return tokens_D.tolist(), peaks_R.tolist()
