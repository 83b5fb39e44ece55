"""Steps of made-up prompts, run once before there is a KV cache: the largest that there can be show what memory steps
need; with smaller ones everything is compiled that would be at its first use, and no request waits for that.

All sequences share block 0: their numbers mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from octavo.config import SchedulerConfig
from octavo.execution.graphs import WORTH_A_GRAPH
from octavo.plan import Row, SequenceSpec, StepPlan
from octavo.request import SamplingParams

_NEIGHBOURS = 1024  # tokens in the context of those that decode beside the long prompt
_PLAIN = SamplingParams(temperature=0.0)

#: Everything that makes drawing costly.
_COSTLY = SamplingParams(
    temperature=0.8, top_k=50, top_p=0.9, min_p=0.01, presence_penalty=0.1, repetition_penalty=1.1, logprobs=20
)


def rehearsal(
    config: SchedulerConfig,
    context: int,
    block_size: int,
    *,
    draws: bool,
    whole_prompts: bool,
    decoding: Sequence[int] = (),
) -> Iterator[StepPlan]:
    """One with as many tokens and sequences as a step may have, then one in which each sequence has one token; small
    ones of each order of size, since kernels differ by it.

    context: tokens that a sequence can come to. draws: whether the model has logits to draw from. decoding: so many
    sequences with one token each in further steps, as often as makes a graph of them. A runner that has run all of them
    knows no sequence any more.
    """
    most = config.max_num_batched_tokens
    sequences = min(config.max_num_seqs, most)
    before: list[int] = []
    small = [[count] for count in _powers_of_two(min(most, context))] + [[1] * n for n in _powers_of_two(sequences)]
    repeated = [[1] * count for count in decoding for _ in range(WORTH_A_GRAPH)]
    large = [_shares(most, sequences, context), [1] * sequences, *repeated]
    for step, counts in enumerate([*large, *small]):
        ids = list(range(step * sequences, step * sequences + len(counts)))
        from_start = whole_prompts or step >= len(large)
        ends = [context, *[max(count, min(context, _NEIGHBOURS)) for count in counts[1:]]]
        rows = [
            Row(each, end - count, [0] * count, 0, [0] * -(-end // block_size), int(draws))
            for each, count, end in zip(ids, counts, counts if from_start else ends, strict=True)
        ]
        params = _COSTLY if step < len(large) else _PLAIN
        yield StepPlan(step, [SequenceSpec(each, [0], 1, params, each, [], []) for each in ids], rows, [], before)
        before = ids
    yield StepPlan(step + 1, [], [], [], before)


def _powers_of_two(end: int) -> list[int]:
    """2, 4, … below `end`."""
    return [1 << order for order in range(1, (end - 1).bit_length())]


def _shares(tokens: int, sequences: int, context: int) -> list[int]:
    """Of each sequence: at least one, the first ones as many as they can have."""
    counts = []
    for others in reversed(range(sequences)):
        counts.append(min(context, tokens - others))
        tokens -= counts[-1]
    return counts
