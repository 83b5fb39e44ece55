from collections.abc import Sequence

_Part = tuple[int, tuple[int, int, int, bool]]

class Program:
    """Operations recorded under the names of the functions below, with the same arguments."""

    def __init__(self) -> None: ...
    def __len__(self) -> int: ...
    def run(
        self,
        tokens: int,
        rows: int,
        positions: int,
        slots: int,
        query_start: int,
        seq_lens: int,
        block_tables: int,
        table_stride: int,
        /,
    ) -> None: ...
    def timed_run(
        self,
        tokens: int,
        rows: int,
        positions: int,
        slots: int,
        query_start: int,
        seq_lens: int,
        block_tables: int,
        table_stride: int,
        /,
    ) -> dict[str, float]: ...

def paged_attention(
    dtype: int,
    q: int,
    q_stride: int,
    k: int,
    v: int,
    query_start: int,
    seq_lens: int,
    block_tables: int,
    table_stride: int,
    out: int,
    rows: int,
    heads: int,
    kv_heads: int,
    head_size: int,
    block_size: int,
    scale: float,
    window: int,
    softcap: float,
    /,
) -> None: ...
def write_kv(
    dtype: int,
    k: int,
    v: int,
    k_stride: int,
    v_stride: int,
    k_cache: int,
    v_cache: int,
    slots: int,
    tokens: int,
    kv_heads: int,
    head_size: int,
    block_size: int,
    /,
) -> None: ...
def rotary(
    dtype: int,
    q: int,
    k: int,
    q_stride: int,
    k_stride: int,
    positions: int,
    table: int,
    q_weight: int,
    k_weight: int,
    eps: float,
    tokens: int,
    heads: int,
    kv_heads: int,
    head_size: int,
    /,
) -> None: ...
def rms_norm(
    dtype: int, x: int, residual: int, weight: int, out: int, eps: float, tokens: int, width: int, /
) -> None: ...
def layer_norm(
    dtype: int, x: int, residual: int, weight: int, bias: int, out: int, eps: float, tokens: int, width: int, /
) -> None: ...
def act(dtype: int, activation: int, x: int, out: int, tokens: int, width: int, /) -> None: ...
def act_mul(dtype: int, activation: int, gate_up: int, out: int, tokens: int, width: int, /) -> None: ...
def linear_rows(dtype: int) -> int: ...
def linear(
    dtype: int,
    out_dtype: int,
    x: int,
    x_stride: int,
    weight: int,
    bias: int,
    out: int,
    tokens: int,
    in_features: int,
    out_features: int,
    /,
) -> None: ...
def quantize(dtype: int, x: int, x_stride: int, out: int, tokens: int, columns: int, /) -> None: ...
def quantized_bytes(tokens: int, columns: int, /) -> int: ...
def quantized_linear(
    out_dtype: int, bias_dtype: int, x: int, matrix: int, bias: int, out: int, tokens: int, /
) -> None: ...
def quantized_embedding(out_dtype: int, matrix: int, ids: int, out: int, tokens: int, columns: int, /) -> None: ...
def packed_bytes(columns: int, parts: Sequence[_Part], /) -> int: ...
def plan_matrix(matrix: int, columns: int, parts: Sequence[_Part], /) -> None: ...
def pack_gguf(matrix: int, part: int, type: int, blocks: int, order: int, /) -> None: ...
def pack_codes(matrix: int, part: int, columns: int, codes: int, scales: int, minimums: int, /) -> None: ...
def gguf_packing(type: int, /) -> tuple[int, int, int, bool] | None: ...
def gguf_row_bytes(type: int, columns: int, /) -> int: ...
def sample(
    logits: int,
    stride: int,
    rows: int,
    vocabulary: int,
    temperature: int,
    min_p: int,
    top_p: int,
    top_k: int,
    positions: int,
    first_draw: int,
    seeds: int,
    tokens: int,
    peaks: int,
    /,
) -> None: ...
def available_isas() -> list[str]: ...
def use_isa(name: str, /) -> bool: ...
def thread_count() -> int: ...
def set_thread_count(threads: int, /) -> None: ...
