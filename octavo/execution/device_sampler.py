"""The sampler of a GPU: everything is enqueued, nothing is waited for, and tokens go on without being seen.

What a sequence's parameters do to logits lies on the device, a row of a matrix for each sequence that needs one: what
is added to its logits, and how often it has said each token of the vocabulary. Both are written when it is sampled
first; counts grow by what each step brings, be it a token that only the device knows. All else is a few numbers a row,
sent in one copy a step. What is too large to be made there beside the draw (log-probabilities of a whole vocabulary,
the candidates of beams) is made of copied logits, by the host sampler's functions, when results are asked for.

Knows neither streams nor events: see `Drawn.results`. Draws what `HostSampler` draws, but for rounding.

Shape letters: those of `kernels.draws`, F facts of a row, E entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.execution.device import Device
from octavo.execution.sampler import beam_candidates, contained, logprobs, refusal
from octavo.execution.staging import Staging
from octavo.kernels import ops
from octavo.kernels.draws import IN_PROMPT, Adjustments, DeviceDraws, Report
from octavo.plan import Row, RowResult, SequenceSpec, fork_seed
from octavo.request import Logprobs

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int32]

_NONE: Mapping[int, bytes] = {}
_MOST_LISTED = 128  # log-probabilities of a row that the device finds, one after the other
_STAGED = 1 << 16  # bytes of a usual step


class DeviceSampler:
    """A `Sampler` whose tokens are on the device before anybody has seen them.

    A sequence with penalties takes 4 bytes of device memory for each token of the vocabulary; one with a logit bias,
    allowed or bad words 4 more, and 4 more if min_tokens has forbidden it to end.
    """

    def __init__(self, device: Device, vocab_size: int) -> None:
        self._device = device
        self._vocab_size = vocab_size
        self._sequences: dict[int, _Sequence] = {}
        self._facts = _Facts()
        self._steering = _Rows(torch.zeros((1, vocab_size), device=device.torch))
        self._said = _Rows(
            torch.zeros((1, vocab_size), dtype=torch.int32, device=device.torch),
            torch.zeros(1, dtype=torch.int64, device=device.torch),
        )
        self._staging = Staging(device, _STAGED)
        self._unwritten: dict[int, _Steering] = {}  # by row of the steering matrix

    def add(self, spec: SequenceSpec) -> None:
        assert spec.sequence_id not in self._sequences
        sequence = self._sequences[spec.sequence_id] = _Sequence(spec, self._facts.take(spec))
        try:
            self._steer(sequence)
            self._remember(sequence)
        except (IndexError, OverflowError, torch.OutOfMemoryError) as error:
            sequence.fault = error  # ends its request when its turn comes, and no other
            sequence.tokens = []

    def remove(self, sequence_id: int) -> None:
        sequence = self._sequences.pop(sequence_id)
        self._facts.give_back(sequence.slot)
        self._said.give_back({sequence.said})
        self._steering.give_back({sequence.early, sequence.late})

    def spec(self, sequence_id: int) -> SequenceSpec:
        return self._sequences[sequence_id].spec

    def sample(self, rows: list[Row], logits_RV: Tensor, masks: Mapping[int, bytes] = _NONE) -> DrawnOnDevice:
        """The logits are changed in place unless log-probabilities are wanted."""
        assert logits_RV.size(1) == self._vocab_size
        sequences = [self._sequences[row.sequence_id] for row in rows]
        for sequence, row in zip(sequences, rows, strict=True):
            sequence.follow(row)
        step = _Step(rows, sequences, self._vocab_size)
        draws, adjustments, asked = self._sent_step(step, masks)
        tokens_D = torch.empty(step.first[-1], dtype=torch.int64, device=self._device.torch)
        peaks_R = torch.empty(len(rows), dtype=torch.float32, device=self._device.torch)
        # What is reported are the model's own logits.
        adjusted_RV = torch.empty_like(logits_RV) if adjustments and step.keeps_raw else logits_RV
        ops.draw(
            logits_RV,
            draws,
            tokens_D,
            peaks_R,
            adjustments,
            adjusted_RV,
            random=step.random,
            restricted=step.restricted,
        )
        made = [tokens_D, peaks_R]
        if step.reporting:
            report = step.report(asked, self._device.torch)
            ops.report_logprobs(logits_RV, tokens_D, report)
            made += [report.own_P, report.rank_P, report.best_QN, report.best_ids_QN]
        whole = {
            place: self._fetched((adjusted_RV if sequence.spec.candidates else logits_RV)[place])
            for place, sequence in enumerate(sequences)
            if sequence.takes_all
        }
        turns = [_Turn(row, each.spec, each.fault) for row, each in zip(rows, sequences, strict=True)]
        return DrawnOnDevice(tokens_D, turns, step.first, step.reporting, [self._fetched(x) for x in made], whole)

    def _sent_step(
        self, step: _Step, masks: Mapping[int, bytes]
    ) -> tuple[DeviceDraws, Adjustments | None, list[Tensor]]:
        """Sends what the step's rows ask for, and has counted what was said. Last come the beginnings of a report."""
        sequences = step.sequences
        rows_E, tokens_E, times_E = step.entries()
        masks_GW, mask_R = step.masks(masks)
        steering_R = _ints(each.steering(at) for each, at in zip(sequences, step.positions, strict=True))
        said_R = _ints(each.said for each in sequences)
        adjusts = max(steering_R.max(), mask_R.max(), said_R.max()) >= 0
        floats, top_k, positions, first, seeds, steering, mask, said, masks_sent, *rest = self._staging.put(
            [
                self._facts.of(sequences),
                _ints(each.spec.params.top_k for each in sequences),
                np.array(step.positions, dtype=np.int64),
                _ints(step.first),
                np.array(step.seeds(), dtype=np.uint64).view(np.int64),
                steering_R,
                mask_R,
                said_R,
                masks_GW,
                rows_E,
                tokens_E,
                times_E,
                *step.reports(),
                *(each.ids for each in self._unwritten.values()),
                *(each.values for each in self._unwritten.values()),
            ]
        )
        asked, written = rest[3:7], rest[7:]
        count = len(self._unwritten)
        for (row, each), ids, values in zip(self._unwritten.items(), written[:count], written[count:], strict=True):
            self._steering.parts[0][row].fill_(each.otherwise).index_copy_(0, ids, values)
        self._unwritten = {}
        temperature, min_p, top_p, repetition, presence, frequency = floats.unbind(0)
        draws = DeviceDraws(temperature, min_p, top_p, top_k, positions, first, seeds)
        said_MV, last_M = self._said.parts
        if len(rows_E):
            ops.count_tokens(said_MV, last_M, *rest[:3])
        if not adjusts:
            return draws, None, asked
        adjustments = Adjustments(
            steering, mask, said, repetition, presence, frequency,
            self._steering.parts[0], masks_sent, said_MV, last_M,
        )  # fmt: skip
        return draws, adjustments, asked

    def _steer(self, sequence: _Sequence) -> None:
        """Writes what is added to the sequence's logits, before and after it may end."""
        spec, params = sequence.spec, sequence.spec.params
        if any(not 0 <= token < self._vocab_size for word in spec.bad_words for token in word):
            raise IndexError("a bad word has a token that the vocabulary does not have")
        words = [word[0] for word in spec.bad_words if len(word) == 1]
        ends = spec.end_token_ids if len(spec.token_ids) < spec.prompt_length + params.min_tokens else []
        if not (params.allowed_token_ids or params.logit_bias or words or ends):
            return
        steering_V = np.zeros(self._vocab_size, dtype=np.float32)
        if params.allowed_token_ids is not None:
            steering_V.fill(-np.inf)
            steering_V[np.array(params.allowed_token_ids)] = 0.0
        for token, bias in (params.logit_bias or {}).items():
            steering_V[token] += bias
        steering_V[words] = -np.inf
        if steering_V.any():
            sequence.late = self._unwritten_row(steering_V, spec)
        if ends:
            steering_V[ends] = -np.inf
            sequence.early = self._unwritten_row(steering_V, spec)

    def _unwritten_row(self, steering_V: Array, spec: SequenceSpec) -> int:
        otherwise = 0.0 if spec.params.allowed_token_ids is None else -np.inf
        ids = np.flatnonzero(steering_V != otherwise)
        row = self._steering.take()
        self._unwritten[row] = _Steering(otherwise, ids, steering_V[ids])
        return row

    def _remember(self, sequence: _Sequence) -> None:
        """Makes room for counts of what the sequence has said, if it is to be penalized for that."""
        spec, params = sequence.spec, sequence.spec.params
        if params.repetition_penalty == 1.0 and not params.presence_penalty and not params.frequency_penalty:
            return
        tokens = np.array(spec.token_ids, dtype=np.int32)
        prompt = np.unique(tokens[: spec.prompt_length])
        output, times = np.unique(tokens[spec.prompt_length :], return_counts=True)
        once = np.full(len(prompt), IN_PROMPT, dtype=np.int32)
        sequence.said = self._said.take()  # before there is anything to count, as there may be no memory
        self._said.parts[0][sequence.said].zero_()
        sequence.uncounted = [(prompt, once), (output, times.astype(np.int32))]

    def _fetched(self, x: Tensor) -> Tensor:
        """What x will be, in memory of the host."""
        return self._device.pinned(tuple(x.shape), x.dtype).copy_(x, non_blocking=True)


@dataclass(frozen=True, slots=True)
class _Steering:
    """A row of the steering matrix, as what differs from the rest of it."""

    otherwise: float
    ids: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Turn:
    row: Row
    spec: SequenceSpec
    fault: Exception | None


@dataclass(frozen=True, slots=True)
class DrawnOnDevice:
    """What a step's draws will have come to when the device has done all that `sample` enqueued."""

    tokens: Tensor
    _turns: list[_Turn]
    _first: list[int]  # where each row's draws begin
    _reporting: list[int]  # rows whose log-probabilities were made on the device
    _made: list[Tensor]  # tokens, peaks; if anything is reported the last four of `Report`
    _whole: dict[int, Tensor]  # logits of the rows whose result the host makes of them

    def results(self) -> list[RowResult]:
        tokens, peaks, *reported = (part.tolist() for part in self._made)
        found = self._logprobs(tokens, *reported) if reported else {}
        results = []
        for place, (turn, peak) in enumerate(zip(self._turns, peaks, strict=True)):
            drawn = tokens[self._first[place] : self._first[place + 1]]
            work = partial(self._result, turn, peak, drawn, found.get(place), self._whole.get(place))
            results.append(contained(turn.row, work))
        return [result for result in results if result is not None]

    def _logprobs(
        self, tokens: list[int], own: list[float], ranks: list[int], best: list[list[float]], best_ids: list[list[int]]
    ) -> dict[int, list[Logprobs]]:
        """For each draw of the rows that report: the token's own, then the best ones."""
        found: dict[int, list[Logprobs]] = {}
        draw = 0
        for place, values, ids in zip(self._reporting, best, best_ids, strict=True):
            count = min(self._turns[place].spec.params.logprobs or 0, len(values))
            places = range(1, count + 1)
            found[place] = []
            for token in tokens[self._first[place] : self._first[place + 1]]:
                entry = Logprobs([token, *ids[:count]], [own[draw], *values[:count]], [ranks[draw], *places])
                found[place].append(entry)
                draw += 1
        return found

    def _result(
        self, turn: _Turn, peak: float, drawn: list[int], found: list[Logprobs] | None, whole_V: Tensor | None
    ) -> RowResult:
        if turn.fault is not None:
            raise turn.fault
        if (refused := refusal(turn.row, peak)) is not None:
            return refused
        if whole_V is not None and turn.spec.candidates:
            return beam_candidates(turn.row, turn.spec, whole_V)
        if whole_V is not None:
            found = logprobs(whole_V, drawn, turn.spec.params.logprobs or 0)
        return RowResult(turn.row.sequence_id, drawn, found)


@dataclass(slots=True)
class _Sequence:
    """What the host remembers of a sequence."""

    spec: SequenceSpec
    slot: int
    said: int = -1  # rows on the device; -1: none
    early: int = -1
    late: int = -1
    fault: Exception | None = None
    #: Tokens and how often they were said, that have not been sent to be counted.
    uncounted: list[tuple[Ints, Ints]] = field(default_factory=list)
    known: int = 0  # tokens that are counted or to be counted
    tokens: list[int] = field(default_factory=list)  # kept only for bad words of several tokens

    def __post_init__(self) -> None:
        self.known = len(self.spec.token_ids)
        if self._phrases:
            self.tokens = list(self.spec.token_ids)

    @property
    def _phrases(self) -> list[list[int]]:
        return [word for word in self.spec.bad_words if len(word) > 1]

    @property
    def random(self) -> bool:
        return self.spec.params.temperature > 0 and not self.spec.candidates

    @property
    def reports(self) -> bool:
        """Whether its log-probabilities are made on the device."""
        return not self.takes_all and self.spec.params.logprobs is not None

    @property
    def takes_all(self) -> bool:
        """Whether the host makes its result of all its logits."""
        asked = self.spec.params.logprobs
        return self.spec.candidates > 0 or (asked is not None and not 0 <= asked <= _MOST_LISTED)

    def steering(self, position: int) -> int:
        """Which row of the steering matrix is for the token at this position."""
        spec = self.spec
        young = position < spec.prompt_length + spec.params.min_tokens
        return self.early if young and self.early >= 0 else self.late

    def follow(self, row: Row) -> None:
        """The row's tokens go before what is drawn now; those that are new were drawn in the step before."""
        fresh = row.token_ids[max(self.known - row.start, 0) :]
        self.known += len(fresh)
        if fresh and self.said >= 0:
            self.uncounted.append((np.array(fresh, dtype=np.int32), np.ones(len(fresh), dtype=np.int32)))
        if fresh and self.tokens:
            self.tokens.extend(fresh)

    def forbidden(self) -> list[int]:
        """Last tokens of the bad words whose other tokens were just said."""
        if not self.tokens:
            return []
        output = self.tokens[self.spec.prompt_length :]
        return [
            word[-1] for word in self._phrases if len(output) >= len(word) - 1 and output[1 - len(word) :] == word[:-1]
        ]


class _Step:
    """The rows of a step as arrays."""

    def __init__(self, rows: list[Row], sequences: list[_Sequence], vocab_size: int) -> None:
        self.rows = rows
        self.sequences = sequences
        self.positions = [row.start + len(row.token_ids) for row in rows]
        self.reporting = [place for place, sequence in enumerate(sequences) if sequence.reports]
        self._vocab_size = vocab_size
        self._counts = [0 if each.spec.candidates else row.draws for row, each in zip(rows, sequences, strict=True)]
        self.first = [0, *accumulate(self._counts)]

    @property
    def keeps_raw(self) -> bool:
        return any(sequence.spec.params.logprobs is not None for sequence in self.sequences)

    @property
    def random(self) -> bool:
        """Whether any row is drawn with a temperature."""
        return any(sequence.random for sequence in self.sequences)

    @property
    def restricted(self) -> bool:
        """Whether any such row has a top-k or top-p that leaves something out."""
        params = [sequence.spec.params for sequence in self.sequences if sequence.random]
        return any(each.top_p < 1 or 0 < each.top_k < self._vocab_size for each in params)

    def seeds(self) -> list[int]:
        return [
            fork_seed(sequence.spec.seed, index)
            for sequence, count in zip(self.sequences, self._counts, strict=True)
            for index in range(count)
        ]

    def entries(self) -> list[Ints]:
        """Rows, tokens and times of what was said and has not been counted."""
        rows, tokens, times = [], [], []
        for sequence in self.sequences:
            for some, often in sequence.uncounted:
                rows.append(np.full(len(some), sequence.said, dtype=np.int32))
                tokens.append(some)
                times.append(often)
            sequence.uncounted = []
        none = np.zeros(0, dtype=np.int32)
        return [np.concatenate([none, *each]) for each in (rows, tokens, times)]

    def masks(self, masks: Mapping[int, bytes]) -> tuple[Ints, Ints]:
        """Masks as words, less what bad words forbid at this place; and which of them a row has."""
        size = 4 * -(-self._vocab_size // 32)
        found: list[Ints] = []
        mask_R = np.full(len(self.rows), -1, dtype=np.int32)
        for place, (row, sequence) in enumerate(zip(self.rows, self.sequences, strict=True)):
            mask, forbidden = masks.get(row.sequence_id), sequence.forbidden()
            if mask is None and not forbidden:
                continue
            bits = bytearray(b"\xff" * size if mask is None else mask[:size].ljust(size, b"\0"))
            for token in forbidden:
                bits[token // 8] &= 0xFF ^ 1 << token % 8
            mask_R[place] = len(found)
            found.append(np.frombuffer(bits, dtype=np.int32))
        return np.stack(found) if found else np.zeros((1, 1), dtype=np.int32), mask_R

    def reports(self) -> list[Ints]:
        """The first four of a `Report`."""
        draws = [
            (draw, line)
            for line, place in enumerate(self.reporting)
            for draw in range(self.first[place], self.first[place + 1])
        ]
        columns = [
            self.reporting,
            [self._listed(self.sequences[place]) for place in self.reporting],
            [draw for draw, _ in draws],
            [line for _, line in draws],
        ]
        return [_ints(column) for column in columns]

    def report(self, asked: list[Tensor], device: torch.device) -> Report:
        """asked: what `reports` said, on the device."""
        lines = len(self.reporting)
        draws = sum(self._counts[place] for place in self.reporting)
        most = max(self._listed(self.sequences[place]) for place in self.reporting)
        rows_Q, wanted_Q, draws_P, place_P = asked
        return Report(
            rows_Q,
            wanted_Q,
            draws_P,
            place_P,
            own_P=torch.empty(draws, dtype=torch.float32, device=device),
            rank_P=torch.empty(draws, dtype=torch.int32, device=device),
            best_QN=torch.empty((lines, most), dtype=torch.float32, device=device),
            best_ids_QN=torch.empty((lines, most), dtype=torch.int32, device=device),
        )

    def _listed(self, sequence: _Sequence) -> int:
        return min(sequence.spec.params.logprobs or 0, self._vocab_size)


def _ints(values: Iterable[int]) -> Ints:
    return np.array([*values], dtype=np.int32)


class _Facts:
    """Numbers of sequences' parameters, a column for each sequence, so that a step's are one look-up."""

    def __init__(self) -> None:
        self._table = np.zeros((6, 16), dtype=np.float32)
        self._free = list(range(16))

    def take(self, spec: SequenceSpec) -> int:
        if not self._free:
            self._free.extend(range(self._table.shape[1], 2 * self._table.shape[1]))
            self._table = np.concatenate([self._table, np.zeros_like(self._table)], axis=1)
        slot, params = self._free.pop(), spec.params
        self._table[:, slot] = (
            params.temperature,
            params.min_p,
            params.top_p,
            params.repetition_penalty,
            params.presence_penalty,
            params.frequency_penalty,
        )
        return slot

    def give_back(self, slot: int) -> None:
        self._free.append(slot)

    def of(self, sequences: list[_Sequence]) -> npt.NDArray[np.float32]:
        """temperature, min_p, top_p, and the three penalties, a column for each sequence.

        Filled up to a multiple of 4 columns: so every row begins at a multiple of 16 bytes, as kernels like it.
        """
        slots = [sequence.slot for sequence in sequences]
        return np.take(self._table, slots + [0] * (-len(slots) % 4), axis=1)


class _Rows:
    """Rows of matrices on the device, for those sequences that need one; twice as many when they run out."""

    def __init__(self, *parts: Tensor) -> None:
        self.parts = parts
        self._free = list(range(parts[0].size(0)))

    def take(self) -> int:
        if not self._free:
            size = self.parts[0].size(0)
            self.parts = tuple(torch.cat([part, torch.zeros_like(part)]) for part in self.parts)
            self._free.extend(range(size, 2 * size))
        return self._free.pop()

    def give_back(self, rows: set[int]) -> None:
        self._free.extend(row for row in rows if row >= 0)
