"""A sequence: one line of known tokens, most of them computed; and the request it belongs to."""

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
    longest: int  # tokens at which a sequence ends in any case
    live: list[Sequence] = field(default_factory=list)
    forked: bool = False
    prompt_logprobs: list[Logprobs] = field(default_factory=list)
    cached_tokens: int | None = None  # of the prompt, at its first admission
    hypotheses: list[Hypothesis] = field(default_factory=list)  # beam search: finished continuations
    foreseeable: bool = field(init=False)  # whether a step can be planned before what it computes is known

    def __post_init__(self) -> None:
        self.foreseeable = _foreseeable(self.request, self.forked)

    def fork(self) -> None:
        """The prompt is computed: from here on there is a sequence for each draw."""
        self.forked = True
        self.foreseeable = _foreseeable(self.request, forked=True)


@dataclass(slots=True, eq=False)
class Sequence:
    """Known tokens, those of them that were ordered to be computed, and the blocks that hold what is.

    `blocks[i]` holds positions i*block_size … of the sequence: logical blocks are filled left to right. `sent` entries
    of that table are known to the workers. `keys` is the prefix cache's chain: its root, then one key per full block.
    Workers do as they are told in the order they are told it, so what was ordered counts as `computed` at once. What
    they draw becomes known later: until then it is `promised`, and may itself be ordered to be computed.
    """

    id: int
    group: Group
    index: int
    seed: int
    tokens: list[int]
    keys: list[bytes]
    computed: int = 0
    promised: int = 0  # draws under way
    incarnation: int = 0  # how often it has lost its blocks: what was ordered before is of no use after
    blocks: list[int] = field(default_factory=list)
    findable: int = 0  # full blocks that the prefix cache knows
    sent: int = 0
    swapped: list[int] = field(default_factory=list)  # host blocks with what it had computed when it was preempted
    swapped_tokens: int = 0
    known_to_workers: bool = False
    cumulative_logprob: float = 0.0  # beams
    candidates: list[tuple[int, float]] = field(default_factory=list)  # beams: (token, logprob), waiting for siblings

    @property
    def alive(self) -> bool:
        return self in self.group.live

    @property
    def missing(self) -> int:
        """Tokens that may be computed now: known ones, or the one drawn last.

        A beam that waits for its siblings has none, nor has a sequence that ends with the token that is promised.
        """
        if self.promised:
            group = self.group
            return int(group.foreseeable and len(self.tokens) + self.promised < group.longest)
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


def _foreseeable(request: Request, forked: bool) -> bool:
    """Not where the next step depends on what is drawn: on which token, or on how many."""
    if request.beam is not None or request.pooling is not None or request.grammar is not None:
        return False
    if any(len(word) > 1 for word in request.bad_words):
        return False
    return forked or (request.draws == 1 and request.params.prompt_logprobs is None)
