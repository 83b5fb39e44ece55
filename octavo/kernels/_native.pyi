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
def act_mul(dtype: int, activation: int, gate_up: int, out: int, tokens: int, width: int, /) -> None: ...
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
def available_isas() -> list[str]: ...
def use_isa(name: str, /) -> bool: ...
def thread_count() -> int: ...
def set_thread_count(threads: int, /) -> None: ...
