"""What the scheduler orders (`StepPlan`) and the workshop returns (`StepResult`).

The only meeting point of `scheduling` and `execution`: plain data that crosses processes as msgpack. A sequence is one
line of tokens being continued; a request with n=3 becomes three sequences once its prompt is computed. A worker keeps,
per sequence, its block table and what the sampler needs; the plan carries only what changed.
"""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct, field

from octavo.request import Fault, Logprobs, PoolingParams, SamplingParams, Task

#: Among a row's tokens: the one that its sequence drew last, which the scheduler has not seen. The worker puts it in;
#: where that draw failed, any token will do. It stands alone in its row.
DRAWN = -1


class SequenceSpec(Struct, frozen=True, array_like=True):
    """Everything a worker must know to sample a sequence; sent when it starts to run, and again after a preemption."""

    sequence_id: int
    token_ids: list[int]  # all tokens known so far: prompt, then output
    prompt_length: int
    params: SamplingParams
    seed: int  # 64 bits; random numbers are keyed by (seed, position)
    end_token_ids: list[int]  # ids forbidden before params.min_tokens
    bad_words: list[list[int]]
    candidates: int = 0  # > 0: beam search; return this many best (token, logprob) instead of drawing
    pooling: PoolingParams | None = None  # nothing is drawn; with the prompt's last token its hidden states are pooled


class Row(Struct, frozen=True, array_like=True):
    """One sequence's share of a step: compute `token_ids` (known ones, or `DRAWN`) at positions start, start+1, …"""

    sequence_id: int
    start: int
    token_ids: list[int]
    first_block: int  # block table entries from this index on are replaced by `block_ids`
    block_ids: list[int]
    draws: int = 0  # tokens to draw from the last position: 0 while known tokens remain, n when a prompt forks


class StepPlan(Struct, frozen=True, array_like=True):
    step: int
    added: list[SequenceSpec]
    rows: list[Row]
    copies: list[tuple[int, int]]  # (source, destination) blocks, copied before anything is computed
    removed: list[int]  # sequence ids a worker may forget, applied first
    #: What rows with draws may draw, by sequence id: bit i of byte j is token 8j + i; missing bytes allow nothing.
    masks: dict[int, bytes] = field(default_factory=dict)
    #: (device block, host block): copied out in order, then in, before `copies`.
    swaps_out: list[tuple[int, int]] = field(default_factory=list)
    swaps_in: list[tuple[int, int]] = field(default_factory=list)

    @property
    def token_count(self) -> int:
        return sum(len(row.token_ids) for row in self.rows)


class RowResult(Struct, frozen=True, array_like=True):
    sequence_id: int
    token_ids: list[int]  # one per draw; the candidates of a beam
    logprobs: list[Logprobs] | None = None  # one per draw, if asked for (always, for a beam: one entry)
    prompt_logprobs: list[Logprobs] | None = None  # for positions start+1 … of a prompt chunk
    error: str | None = None  # this row failed (say, NaN logits); the others stand
    fault: Fault = "failed"
    pooled: bytes | None = None  # float32, little-endian
    param: str | None = None  # which of the caller's fields the error is about
    complete: list[bool] | None = None  # per draw: nothing may follow it


class StepResult(Struct, frozen=True, array_like=True):
    step: int
    rows: list[RowResult]  # rows with draws, prompt logprobs, a pooled prompt or an error; order does not matter


class Pending(Protocol):
    """A step that was submitted."""

    def result(self) -> StepResult:
        """Waits until it is computed. To be asked once, after the steps before it."""
        ...


class Computed(Struct, frozen=True):
    """One that was computed at once."""

    outcome: StepResult

    def result(self) -> StepResult:
        return self.outcome


def fork_seed(seed: int, index: int) -> int:
    """The seed of a request's index-th sequence: its own for 0, else 64 bits mixed from both by SplitMix64."""
    if index == 0:
        return seed
    x = (seed + index * 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


class Ability(Struct, frozen=True, kw_only=True):
    """What a model is for."""

    tasks: tuple[Task, ...] = ("generate", "embed")
    width: int = 0  # of a vector it makes
    classes: int = 0  # that it tells apart
    whole_prompts: bool = False  # a prompt must be computed in one step: its tokens see those after them


class Capacity(Struct, frozen=True, kw_only=True):
    """What a loaded model can take; the scheduler and the doors are built from it."""

    num_blocks: int
    block_size: int
    max_model_len: int
    vocab_size: int  # width of the logits: every token id must be below
    host_blocks: int = 0  # of the machine's memory, for what preempted sequences have computed
    kept_blocks: int | None = None  # that may take memory only to keep content for the prefix cache; None: all
    ability: Ability = Ability()
    gpus: list[str] = []  # UUIDs of those that compute
    steps_ahead: int = 0  # steps that may be submitted beyond the one whose result is awaited
