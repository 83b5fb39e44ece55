"""Every operation in plain torch: what the compiled kernels are compared with, and what runs where none exist.

Same signatures as `octavo.kernels.ops`, same float32 arithmetic with one rounding at the end; written to be read.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.draws import IN_PROMPT, Adjustments, DeviceDraws, Draws, Report
from octavo.kernels.layout import Layout, Order
from octavo.kernels.packed import PackedMatrix, dequantize
from octavo.kernels.philox import uniform

_WIDENED_ROWS = 8192


def linear(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None, full_precision: bool = False) -> Tensor:
    if not full_precision:
        return F.linear(x_TK, weight_NK, bias_N)
    # Widened piece by piece: a vocabulary's matrix in float32 may be more than there is memory for.
    y_TN = torch.cat([F.linear(x_TK.float(), piece.float()) for piece in torch.split(weight_NK, _WIDENED_ROWS)], 1)
    return y_TN if bias_N is None else y_TN + bias_N


def _rounded(x_TK: Tensor) -> Tensor:
    """float32 x to the nearest scale · code with codes of -127 to 127 and a scale for every 32 columns."""
    tokens, inner = x_TK.shape
    x_TB32 = F.pad(x_TK, (0, -inner % 32)).view(tokens, -(-inner // 32), 32)
    largest_TB1 = x_TB32.abs().amax(2, keepdim=True)
    inverse_TB1 = torch.full_like(largest_TB1, 127).div(largest_TB1)  # 127 / x would round twice
    codes = torch.where(largest_TB1 > 0, (x_TB32 * inverse_TB1).round(), 0.0)
    rounded_TK: Tensor = (codes * (largest_TB1 / 127)).flatten(1)[:, :inner]
    return rounded_TK


def quantized_linear(
    x_TK: Tensor, matrix: PackedMatrix, bias_N: Tensor | None = None, full_precision: bool = False
) -> Tensor:
    y_TN = F.linear(_rounded(x_TK.float()), dequantize(matrix))
    y_TN = y_TN if bias_N is None else y_TN + bias_N
    return y_TN if full_precision else y_TN.to(x_TK.dtype)


def invariant_linear(
    x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None, full_precision: bool = False
) -> Tensor:
    """Row by row: torch's product of one row knows of no other."""
    rows = [linear(x_1K, weight_NK, bias_N, full_precision) for x_1K in torch.split(x_TK, 1)]
    return torch.cat(rows) if rows else linear(x_TK, weight_NK, bias_N, full_precision)


def group_weights(codes: Tensor, scales: Tensor, minimums: Tensor | None = None) -> Tensor:
    """The float32 [N, K] that 4-bit codes stand for, each value rounded once or, with minimums, twice."""
    halves = codes.view(*scales.shape, -1)
    values = torch.cat((halves & 15, halves >> 4), 2).float()
    scales = scales.float().unsqueeze(2)
    values = (values - 8) * scales if minimums is None else values * scales + minimums.float().unsqueeze(2)
    return values.flatten(1)


def group_linear(
    x_TK: Tensor,
    codes: Tensor,
    scales: Tensor,
    minimums: Tensor | None = None,
    bias_N: Tensor | None = None,
    full_precision: bool = False,
) -> Tensor:
    y_TN = F.linear(x_TK.float(), group_weights(codes, scales, minimums), None if bias_N is None else bias_N.float())
    return y_TN if full_precision else y_TN.to(x_TK.dtype)


#: The largest code of each 8-bit type.
LEVELS = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0, torch.float8_e4m3fnuz: 240.0}


def quantize_rows(x_TK: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes [T, K] and float32 scales [T]: x = scale · code, a row's largest at the end of the codes' range."""
    x_TK = x_TK.float()
    largest_T = x_TK.abs().amax(1)
    inverse_T = torch.full_like(largest_T, LEVELS[dtype]).div(largest_T)  # a number / x would round twice
    scaled = torch.where(largest_T[:, None] > 0, x_TK * inverse_T[:, None], 0.0)
    return (scaled.round() if dtype is torch.int8 else scaled).to(dtype), largest_T / LEVELS[dtype]


def scaled_linear(
    x_TK: Tensor, codes_NK: Tensor, scales_N: Tensor, bias_N: Tensor | None = None, full_precision: bool = False
) -> Tensor:
    x_codes, x_scale = quantize_rows(x_TK, codes_NK.dtype)
    exact = torch.float64 if codes_NK.dtype is torch.int8 else torch.float32
    y_TN = F.linear(x_codes.to(exact), codes_NK.to(exact)).float() * x_scale[:, None] * scales_N
    y_TN = y_TN if bias_N is None else y_TN + bias_N
    return y_TN if full_precision else y_TN.to(x_TK.dtype)


def quantized_embedding(ids_T: Tensor, matrix: PackedMatrix, dtype: torch.dtype) -> Tensor:
    return dequantize(matrix)[ids_T].to(dtype)


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rms_norm(x_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    return _normed(x_TE, weight_E, eps).to(x_TE.dtype)


def add_rms_norm(x_TE: Tensor, residual_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    residual_TE += x_TE
    return rms_norm(residual_TE, weight_E, eps)


def layer_norm(x_TE: Tensor, weight_E: Tensor, bias_E: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x_TE.float(), weight_E.shape, weight_E, bias_E, eps).to(x_TE.dtype)


def add_layer_norm(x_TE: Tensor, residual_TE: Tensor, weight_E: Tensor, bias_E: Tensor, eps: float) -> Tensor:
    residual_TE += x_TE
    return layer_norm(residual_TE, weight_E, bias_E, eps)


def gelu(x_TE: Tensor) -> Tensor:
    return F.gelu(x_TE.float()).to(x_TE.dtype)


def gelu_tanh(x_TE: Tensor) -> Tensor:
    return F.gelu(x_TE.float(), approximate="tanh").to(x_TE.dtype)


def relu(x_TE: Tensor) -> Tensor:
    return F.relu(x_TE)


def silu_mul(gate_up_TE: Tensor) -> Tensor:
    gate, up = gate_up_TE.float().chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up_TE.dtype)


def gelu_tanh_mul(gate_up_TE: Tensor) -> Tensor:
    gate, up = gate_up_TE.float().chunk(2, dim=-1)
    return (F.gelu(gate, approximate="tanh") * up).to(gate_up_TE.dtype)


def rotary(
    q_THD: Tensor,
    k_TGD: Tensor,
    positions_T: Tensor,
    table_PD: Tensor,
    q_weight_D: Tensor | None = None,
    k_weight_D: Tensor | None = None,
    eps: float = 0.0,
) -> None:
    cos, sin = table_PD[positions_T].unsqueeze(1).chunk(2, dim=-1)
    for heads, weight_D in ((q_THD, q_weight_D), (k_TGD, k_weight_D)):
        values = heads.float() if weight_D is None else _normed(heads, weight_D, eps)
        x, y = values.chunk(2, dim=-1)
        heads.copy_(torch.cat((x * cos - y * sin, y * cos + x * sin), dim=-1))


def rotary_and_write(
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    positions_T: Tensor,
    table_PD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots_T: Tensor,
    q_weight_D: Tensor | None = None,
    k_weight_D: Tensor | None = None,
    eps: float = 0.0,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    rotary(q_THD, k_TGD, positions_T, table_PD, q_weight_D, k_weight_D, eps)
    write_kv(k_TGD, v_TGD, k_cache, v_cache, slots_T, k_scale, v_scale)


def write_kv(
    k_TGD: Tensor,
    v_TGD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots_T: Tensor,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    wanted = slots_T >= 0
    slots_T, block_size = slots_T[wanted], k_cache.size(2)
    blocks_T, offsets_T = slots_T // block_size, slots_T % block_size
    for new_TGD, cache, scale in ((k_TGD, k_cache, k_scale), (v_TGD, v_cache, v_scale)):
        cache[blocks_T, :, offsets_T] = _cached(new_TGD[wanted], scale, cache.dtype)


def _cached(x: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """As a cache of this type keeps x."""
    if dtype.itemsize > 1:
        return x
    largest = torch.finfo(dtype).max
    return (x.float() * (1 / scale)).clamp(-largest, largest).to(dtype)


def copy_blocks(from_PBX: Tensor, to_PBX: Tensor, sources_N: Tensor, destinations_N: Tensor) -> None:
    to_PBX[:, destinations_N] = from_PBX[:, sources_N]


def paged_attention(
    q_THD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    query_start: Tensor,
    seq_lens_R: Tensor,
    block_tables: Tensor,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    causal: bool = True,
    sinks_H: Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    split_tokens: int = 0,  # noqa: ARG001 - a promise of bits, for kernels
) -> Tensor:
    out_THD = torch.zeros_like(q_THD, dtype=torch.float32)
    starts, lengths = query_start.tolist(), seq_lens_R.tolist()
    kv_heads, block_size = k_cache.size(1), k_cache.size(2)
    for row, length in enumerate(lengths):
        tokens = slice(starts[row], starts[row + 1])
        blocks = block_tables[row, : -(-length // block_size)].long()
        k_GSD, v_GSD = (cache[blocks].transpose(0, 1).flatten(1, 2)[:, :length].float() for cache in (k_cache, v_cache))
        q_HTD = q_THD[tokens].float().transpose(0, 1)
        q_GMD = q_HTD.reshape(kv_heads, -1, q_HTD.size(-1))  # heads of a group below each other
        scores = (q_GMD @ k_GSD.transpose(1, 2) * (scale * k_scale)).view(*q_HTD.shape[:2], length)
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        count = q_HTD.size(1)
        key = torch.arange(length, device=q_THD.device)
        query = torch.arange(length - count, length, device=q_THD.device).unsqueeze(1)
        if causal:
            scores = scores.masked_fill((key > query) | ((key <= query - window) if window else False), -torch.inf)
        if sinks_H is not None:
            scores = torch.cat((scores, sinks_H[:, None, None].expand(-1, count, -1)), -1)
        weights = scores.softmax(-1)[..., :length].reshape(kv_heads, q_GMD.size(1), length)
        out_THD[tokens] = (weights @ v_GSD).view_as(q_HTD).transpose(0, 1) * v_scale
    return out_THD.to(q_THD.dtype)


def sample(logits_RV: Tensor, draws: Draws) -> tuple[list[int], list[float]]:
    best_R = logits_RV.argmax(-1)
    peaks_R: list[float] = logits_RV.gather(-1, best_R[:, None])[:, 0].tolist()  # a NaN in a row wins its argmax
    tokens: list[int] = []
    for row, (best, peak) in enumerate(zip(best_R.tolist(), peaks_R, strict=True)):
        begin, end = draws.first_R1[row : row + 2].tolist()
        if draws.temperature_R[row] == 0 or not math.isfinite(peak):
            tokens += [best] * (end - begin)
            continue
        ids, sums = _distribution(logits_RV[row] - peak, draws, row)
        position = int(draws.positions_R[row])
        numbers = sums.new_tensor([uniform(int(seed), position) for seed in draws.seeds_D[begin:end]])
        places = torch.searchsorted(sums, numbers * sums[-1], right=True)
        tokens += (places if ids is None else ids[places]).tolist()
    return tokens, peaks_R


def _distribution(below_V: Tensor, draws: Draws, row: int) -> tuple[Tensor | None, Tensor]:
    """Tokens that may be drawn (None: all) and the running sum of their weights, given logits below the best one."""
    temperature, min_p, top_p = (float(each[row]) for each in (draws.temperature_R, draws.min_p_R, draws.top_p_R))
    top_k = int(draws.top_k_R[row])
    weights = (below_V / temperature).exp().double()
    weights = weights.masked_fill(weights < min_p, 0.0)
    restricted = 0 < top_k < len(weights)
    if not restricted and top_p >= 1.0:
        return None, weights.cumsum(0)
    weights, ids = weights.sort(descending=True, stable=True)
    if restricted:
        weights, ids = weights[:top_k], ids[:top_k]
    sums = weights.cumsum(0)
    kept = max(int((sums - weights < top_p * sums[-1]).sum()), 1)
    return ids[:kept], sums[:kept]


def draw(
    raw_RV: Tensor,
    draws: DeviceDraws,
    tokens_D: Tensor,
    peaks_R: Tensor,
    adjustments: Adjustments | None = None,
    adjusted_RV: Tensor | None = None,
    random: bool = True,
    restricted: bool = True,
) -> None:
    del random, restricted  # every row is looked at
    logits_RV = raw_RV
    if adjustments is not None:
        logits_RV = raw_RV if adjusted_RV is None else adjusted_RV
        for row, raw_V in enumerate(raw_RV):
            logits_RV[row] = _adjusted(raw_V, adjustments, row)
    temperature_R, min_p_R, top_p_R, top_k_R, positions_R, first_R1, seeds_D = (x.cpu().numpy() for x in draws)
    known = Draws(temperature_R, min_p_R, top_p_R, top_k_R, positions_R, first_R1, seeds_D.view("uint64"))
    tokens, peaks = sample(logits_RV, known)
    tokens_D.copy_(torch.tensor(tokens, dtype=torch.int64))
    peaks_R.copy_(torch.tensor(peaks))
    if adjustments is not None:
        first = draws.first_R1.tolist()
        for row, said in enumerate(adjustments.said_R.tolist()):
            if said >= 0 and first[row + 1] > first[row]:
                adjustments.last_M[said] = tokens_D[first[row]]


def _adjusted(x_V: Tensor, changes: Adjustments, row: int) -> Tensor:
    steering, mask, said = (int(each[row]) for each in changes[:3])
    repetition, presence, frequency = (float(each[row]) for each in changes[3:6])
    if steering >= 0:
        bias_V = changes.steering_SV[steering]
        x_V = torch.where(bias_V == -torch.inf, bias_V, x_V + bias_V)
    if mask >= 0:
        token = torch.arange(len(x_V), device=x_V.device)
        allowed_V = changes.masks_GW[mask][token // 32] >> token % 32 & 1
        x_V = torch.where(allowed_V > 0, x_V, x_V - torch.inf)
    if said >= 0:
        said_V = changes.said_MV[said]
        x_V = torch.where(said_V > 0, torch.where(x_V > 0, x_V / repetition, x_V * repetition), x_V)
        times_V = said_V & IN_PROMPT - 1
        x_V = torch.where(times_V > 0, x_V - (frequency * times_V + presence), x_V)
    return x_V


def count_tokens(said_MV: Tensor, last_M: Tensor, rows_E: Tensor, tokens_E: Tensor, times_E: Tensor) -> None:
    rows_E = rows_E.long()
    tokens_E = torch.where(tokens_E < 0, last_M[rows_E], tokens_E.long())
    said_MV.index_put_((rows_E, tokens_E), times_E, accumulate=True)


def report_logprobs(raw_RV: Tensor, tokens_D: Tensor, wanted: Report) -> None:
    rows_Q = wanted.rows_Q.long()
    logprobs_QV = raw_RV[rows_Q].log_softmax(-1)
    values_QV, ids_QV = logprobs_QV.sort(descending=True, stable=True)
    most = wanted.best_QN.size(1)
    wanted.best_QN.copy_(values_QV[:, :most])
    wanted.best_ids_QN.copy_(ids_QV[:, :most])
    own_P = logprobs_QV[wanted.place_P.long()].gather(1, tokens_D[wanted.draws_P.long()][:, None])
    wanted.own_P.copy_(own_P[:, 0])
    wanted.rank_P.copy_((logprobs_QV[wanted.place_P.long()] > own_P).sum(1) + 1)


def lay_out(order: Order, last_token_S: Tensor, tables_SB: Tensor, block_size: int, out: Layout) -> None:
    rows, tokens = order.rows_RC.size(0), order.tokens_T.size(0)
    out.query_start_P1[0] = 0
    for row, columns in enumerate(order.rows_RC.tolist()):
        slot, start, begin, count, first, new, fresh, *_ = columns
        tables_SB[slot, first : first + fresh] = order.blocks_U[new : new + fresh]
        positions = torch.arange(start, start + count, device=tables_SB.device)
        ids = order.tokens_T[begin : begin + count].long()
        step = slice(begin, begin + count)
        out.token_ids_Q[step] = torch.where(ids < 0, last_token_S[slot], ids)
        out.positions_Q[step] = positions
        out.slots_Q[step] = tables_SB[slot, positions // block_size].long() * block_size + positions % block_size
        out.query_start_P1[row + 1] = begin + count
        out.seq_lens_P[row] = start + count
        entries = -(-(start + count) // block_size)
        out.block_tables_PB[row, :entries] = tables_SB[slot, :entries]
    out.token_ids_Q[tokens:] = out.positions_Q[tokens:] = 0
    out.slots_Q[tokens:] = -1
    out.query_start_P1[rows + 1 :] = torch.arange(tokens + 1, out.token_ids_Q.size(0) + 1)
    out.seq_lens_P[rows:] = 0
