"""Beam search as a pure choice: from every beam's best next tokens, which continuations live on and which are done.

The plain form, as in vLLM: each of W beams offers its 2W best tokens; those that end the text become hypotheses, the W
best others live on. At the end scores are compared, divided by (tokens of output) ** length penalty.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from octavo.scheduling.sequence import Hypothesis, Sequence


@dataclass(slots=True, frozen=True)
class Successor:
    parent: Sequence
    token: int
    cumulative_logprob: float


def advance(beams: Seq[Sequence], width: int, end_tokens: frozenset[int]) -> tuple[list[Successor], list[Hypothesis]]:
    """All beams have candidates: the `width` best successors, best first, and the hypotheses that ended.

    Ties go to the earlier beam, then to its better candidate, so the outcome never depends on timing.
    """
    living: list[Successor] = []
    ended: list[Hypothesis] = []
    for beam in beams:
        for token, logprob in beam.candidates:
            total = beam.cumulative_logprob + logprob
            if token in end_tokens:
                ended.append(Hypothesis([*_output(beam), token], total, token))
            else:
                living.append(Successor(beam, token, total))
    living.sort(key=lambda successor: -successor.cumulative_logprob)
    return living[:width], ended


def finish(beams: Seq[Successor], ended: Seq[Hypothesis], width: int, length_penalty: float) -> list[Hypothesis]:
    """The `width` best of everything found, best first, when no beam may grow any longer."""
    cut = [Hypothesis([*_output(beam.parent), beam.token], beam.cumulative_logprob, None) for beam in beams]
    return sorted([*ended, *cut], key=lambda hypothesis: -hypothesis.score(length_penalty))[:width]


def _output(beam: Sequence) -> list[int]:
    return beam.tokens[len(beam.group.request.prompt_token_ids) :]
