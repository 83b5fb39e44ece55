"""A sequence: one line of known tokens, some of them computed; and the request it belongs to."""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo.plan import SequenceSpec
from octavo.request import Logprobs, Request
from octavo.scheduling.policy import Key


@dataclass(slots=True, eq=False)
class Group:
    """A request and the sequences that continue its prompt: one until the prompt is computed, then n (or the beams)."""

    request: Request
    key: Key
    ends: frozenset[int]  # tokens that end an output
    live: list[Sequence] = field(default_factory=list)
    forked: bool = False
    prompt_logprobs: list[Logprobs] = field(default_factory=list)
    cached_tokens: int | None = None  # of the prompt, at its first admission
    hypotheses: list[Hypothesis] = field(default_factory=list)  # beam search: finished continuations


@dataclass(slots=True, eq=False)
class Sequence:
    """Known tokens, computed ones among them, and the blocks that hold what was computed.

    `blocks[i]` holds positions i*block_size … of the sequence: logical blocks are filled left to right. `sent` entries
    of that table are known to the workers. `keys` is the prefix cache's chain: its root, then one key per full block.
    """

    id: int
    group: Group
    index: int
    seed: int
    tokens: list[int]
    keys: list[bytes]
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    findable: int = 0  # full blocks that the prefix cache knows
    sent: int = 0
    known_to_workers: bool = False
    cumulative_logprob: float = 0.0  # beams
    candidates: list[tuple[int, float]] = field(default_factory=list)  # beams: (token, logprob), waiting for siblings

    @property
    def missing(self) -> int:
        """Known tokens that are not computed yet; a beam that waits for its siblings has none."""
        return 0 if self.candidates else len(self.tokens) - self.computed

    @property
    def output_length(self) -> int:
        return len(self.tokens) - len(self.group.request.prompt_token_ids)

    def spec(self) -> SequenceSpec:
        request = self.group.request
        return SequenceSpec(
            sequence_id=self.id,
            token_ids=list(self.tokens),
            prompt_length=len(request.prompt_token_ids),
            params=request.params,
            seed=self.seed,
            end_token_ids=request.end_token_ids,
            bad_words=request.bad_words,
            candidates=2 * request.beam.beam_width if request.beam else 0,
            pooling=request.pooling,
        )


@dataclass(slots=True)
class Hypothesis:
    """A finished continuation of a beam search."""

    tokens: list[int]
    cumulative_logprob: float
    stopped_by: int | None  # the end token, or None when cut by length

    def score(self, length_penalty: float) -> float:
        return self.cumulative_logprob / float(len(self.tokens) ** length_penalty)
