"""Log-probabilities of a prompt's own tokens, for requests that ask for them. On any device, waiting for none.

P positions of a piece, K best tokens, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.plan import Row, SequenceSpec
from octavo.request import Logprobs

_CHUNK = 128  # positions whose logits are held at once: a vocabulary is large

Fetch = Callable[[Tensor], Tensor]  # a tensor on the host, to be read when the step is done


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a prompt: hidden states from number `first` of the step on, and the tokens that they foretell."""

    first: int
    predicted: list[int]
    count: int  # of best tokens wanted; -1: all


def piece(row: Row, last: int, spec: SequenceSpec) -> Piece | None:
    """What a row whose last token is number `last` of the step has to tell, if anything."""
    count = spec.params.prompt_logprobs
    predicted = spec.token_ids[row.start + 1 : min(row.start + len(row.token_ids) + 1, spec.prompt_length)]
    if count is None or not predicted:
        return None
    return Piece(last + 1 - len(row.token_ids), predicted, count)


def score(
    hidden_PE: Tensor, predicted_P: Tensor, count: int, logits: Callable[[Tensor], Tensor], fetch: Fetch
) -> Callable[[], list[Logprobs]]:
    """For each position the foretold token's log-probability and rank, then the best: to be read when the step is done.

    predicted: int64, on the device.
    """
    found = [
        tuple(map(fetch, _scores(logits(hidden_CE), predicted_C, count)))
        for hidden_CE, predicted_C in zip(torch.split(hidden_PE, _CHUNK), torch.split(predicted_P, _CHUNK), strict=True)
    ]

    def read() -> list[Logprobs]:
        lists = (position for chunk in found for position in zip(*(each.tolist() for each in chunk), strict=True))
        return [
            Logprobs([token, *ids], [own, *values], [rank, *range(1, len(ids) + 1)])
            for token, own, rank, ids, values in lists
        ]

    return read


def _scores(logits_PV: Tensor, predicted_P: Tensor, count: int) -> tuple[Tensor, ...]:
    values_PV = logits_PV.log_softmax(-1)
    own_P1 = values_PV.gather(1, predicted_P[:, None])
    rank_P = (values_PV > own_P1).sum(1) + 1
    vocabulary = values_PV.size(1)
    top_PK, ids_PK = values_PV.topk(vocabulary if count == -1 else min(count, vocabulary))
    return predicted_P, own_P1[:, 0], rank_P, ids_PK, top_PK
