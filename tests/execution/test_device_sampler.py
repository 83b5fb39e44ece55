"""The device's sampler against the host's: the same results whatever is asked, and nothing waits for the device."""

from __future__ import annotations

import importlib
import math
import random
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from fake_device import FakeDevice, FakeEvent, Pinned
from torch import Tensor
from torch.overrides import TorchFunctionMode

from octavo.execution.device_sampler import DeviceSampler
from octavo.execution.sampler import Drawn, HostSampler
from octavo.kernels import ops, reference
from octavo.plan import DRAWN, Row, RowResult, SequenceSpec
from octavo.request import SamplingParams

pytest.importorskip("triton.language", reason="no triton: GPU kernels cannot even be interpreted")

V = 70


class NoWaiting(TorchFunctionMode):
    """Fails where the host would wait for the device: where it looks at a value that is not in its own memory."""

    LOOKS = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero", "equal")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self.LOOKS:
            assert isinstance(args[0], Pinned), f"{func.__name__} waits"
        return func(*args, **(kwargs or {}))


class Sampler:
    """The device's sampler and what a runner does around it."""

    def __init__(self) -> None:
        self.fake = FakeDevice()
        self.inner = DeviceSampler(self.fake, V)
        self.add, self.remove = self.inner.add, self.inner.remove

    def sample(self, rows: list[Row], logits: Tensor, masks: Any = None) -> Sampled:
        with nullcontext() if ops.kernels_for(logits) is reference else NoWaiting():
            drawn = self.inner.sample(rows, logits, masks or {})
            event = self.fake.event()
            event.record()
        return Sampled(drawn, event)


class Sampled:
    def __init__(self, drawn: Drawn, event: FakeEvent) -> None:
        self.tokens, self._drawn, self._event = drawn.tokens, drawn, event

    def results(self) -> list[RowResult]:
        self._event.synchronize()
        return self._drawn.results()


make = Sampler


@pytest.fixture(params=["triton", "reference"], autouse=True)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whose kernels draw."""
    if request.param == "triton" and torch.cuda.is_available():
        pytest.skip("kernels are compiled here, for memory of the GPU")
    chosen = importlib.import_module("octavo.kernels.triton.kernels") if request.param == "triton" else reference
    monkeypatch.setattr(ops, "kernels_for", lambda _: chosen)
    return request.param


def spec(number: int = 0, tokens=(1, 2, 3), prompt=3, ends=(), bad_words=(), candidates=0, **params) -> SequenceSpec:
    return SequenceSpec(
        number, list(tokens), prompt, SamplingParams(**params), 77 + number, list(ends), [list(w) for w in bad_words],
        candidates,
    )  # fmt: skip


def logits_of(seed: int, rows: int = 1) -> Tensor:
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(seed)) * 3


def same(got: list[RowResult], expected: list[RowResult]) -> None:
    assert len(got) == len(expected)
    for mine, other in zip(got, expected, strict=True):
        assert mine.token_ids == other.token_ids
        assert (mine.sequence_id, mine.error, mine.fault) == (other.sequence_id, other.error, other.fault)
        assert (mine.logprobs is None) == (other.logprobs is None)
        for entry, wanted in zip(mine.logprobs or [], other.logprobs or [], strict=True):
            assert (entry.token_ids, entry.ranks) == (wanted.token_ids, wanted.ranks)
            assert entry.logprobs == pytest.approx(wanted.logprobs, abs=1e-4)


def host(sampler: HostSampler, rows: list[Row], logits: Tensor, masks: Any = None) -> Drawn:
    """As on a CPU without compiled kernels: always by the plain form."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "kernels_for", lambda _: reference)
        return sampler.sample(rows, logits.clone(), masks or {})


class Both:
    """Both samplers through one history; the device's is told of tokens as late as may be."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.host, self.device = HostSampler(), make()
        self.tokens: dict[int, list[int]] = {}
        self.specs: dict[int, SequenceSpec] = {}
        self._seed = seed * 1000
        self._unseen: set[int] = set()  # sequences whose last token the scheduler may not have seen

    def arrive(self, number: int) -> None:
        prompt = [self.random.randrange(V) for _ in range(self.random.randrange(1, 6))]
        self.add(
            SequenceSpec(
                number, prompt, len(prompt), self._params(), self.random.getrandbits(64), [5, 9], self._words()
            )
        )

    def add(self, spec: SequenceSpec) -> None:
        self.specs[spec.sequence_id], self.tokens[spec.sequence_id] = spec, list(spec.token_ids)
        for sampler in (self.host, self.device):
            sampler.add(spec)

    def remove(self, number: int) -> None:
        for sampler in (self.host, self.device):
            sampler.remove(number)
        del self.specs[number], self.tokens[number]
        self._unseen.discard(number)

    def preempt(self, number: int) -> None:
        spec, tokens = self.specs[number], self.tokens[number]
        self.remove(number)
        self.add(SequenceSpec(*[spec.sequence_id, tokens, spec.prompt_length, *spec_rest(spec)]))

    def _params(self) -> SamplingParams:
        pick = self.random.choice
        return SamplingParams(
            temperature=pick([0.0, 0.7, 1.5]), top_p=pick([1.0, 0.8]), top_k=pick([0, 3, 500]), min_p=pick([0.0, 0.05]),
            presence_penalty=pick([0.0, 1.0]), frequency_penalty=pick([0.0, -0.5]), repetition_penalty=pick([1.0, 1.4]),
            logit_bias=pick([None, {3: 4.0, 60: -2.0}]), min_tokens=pick([0, 2]),
            allowed_token_ids=pick([None, None, list(range(0, V, 2))]), logprobs=pick([None, 0, 5, -1]),
        )  # fmt: skip

    def _words(self) -> list[list[int]]:
        return self.random.choice([[], [], [[7], [8]], [[7], [3, 4], [60, 61, 62]]])

    def step(self) -> None:
        numbers = [number for number in self.specs if self.random.random() < 0.7]
        self.random.shuffle(numbers)
        if not numbers:
            return
        known, late, masks = [], [], {}
        for number in numbers:
            tokens, fresh = self.tokens[number], number in self._unseen
            start = len(tokens) - 1 if fresh else 0
            known.append(Row(number, start, tokens[start:], 0, [], 1))
            may_lag = fresh and not self.specs[number].bad_words and self.random.random() < 0.7
            late.append(Row(number, start, [DRAWN], 0, [], 1) if may_lag else known[-1])
            if self.random.random() < 0.2 and not may_lag:
                masks[number] = self.random.randbytes(-(-V // 8))
        self._seed += 1
        logits = logits_of(self._seed, len(numbers))
        expected = host(self.host, known, logits, masks)
        drawn = self.device.sample(late, logits.clone(), masks)
        same(drawn.results(), expected.results())
        for number, result in zip(numbers, expected.results(), strict=True):
            if result.error:
                self.remove(number)
            else:
                self.tokens[number] += result.token_ids
                self._unseen.add(number)
        assert drawn.tokens.dtype is torch.int64


def spec_rest(spec: SequenceSpec) -> tuple[Any, ...]:
    return spec.params, spec.seed, spec.end_token_ids, spec.bad_words


@pytest.mark.parametrize("seed", range(4))
def test_any_history_gives_what_the_host_gives(seed: int) -> None:
    both = Both(seed)
    for number in range(8):
        both.arrive(number)
        both.step()
        living = list(both.specs)
        if living and number % 3 == 2:
            both.preempt(both.random.choice(living))
        if living and number % 4 == 3:
            both.remove(both.random.choice(living))


def test_nothing_waits_for_the_device(kernels: str) -> None:
    if kernels == "reference":
        pytest.skip("the plain form looks at values")
    sampler = make()
    everything = {
        "top_p": 0.9, "top_k": 20, "presence_penalty": 1.0, "repetition_penalty": 1.2, "min_tokens": 3, "logprobs": 3,
        "logit_bias": {3: 1.0},
    }  # fmt: skip
    with NoWaiting():
        sampler.add(spec(0, ends=[4], bad_words=[[5], [2, 3, 6]], **everything))
        sampler.add(spec(1, candidates=3))
        sampler.add(spec(2, logprobs=-1, temperature=0.0))
    rows = [Row(number, 0, [1, 2, 3], 0, [], 1) for number in range(3)]
    first = sampler.sample(rows, logits_of(1, 3), {1: b"\xff" * 9})
    second = sampler.sample([Row(0, 3, [DRAWN], 0, [], 1)], logits_of(2))
    assert [len(result.token_ids) for result in first.results() + second.results()] == [1, 3, 1, 1]


def test_draws_of_one_prompt_have_seeds_of_their_own() -> None:
    both = Both(0)
    both.add(spec(temperature=2.0, logprobs=2))
    row = Row(0, 0, [1, 2, 3], 0, [], 5)
    drawn = both.device.sample([row], logits_of(3))
    same(drawn.results(), host(both.host, [row], logits_of(3)).results())
    assert len(set(drawn.tokens.tolist())) > 1


def test_beams_get_their_candidates_of_what_the_mask_leaves() -> None:
    both = Both(0)
    both.add(spec(0, candidates=4, logit_bias={1: 3.0}))
    both.add(spec(1, temperature=0.0))
    rows, masks = [Row(number, 0, [1, 2, 3], 0, [], 1) for number in range(2)], {0: b"\x55" * 9}
    drawn = both.device.sample(rows, logits_of(4, 2), masks)
    same(drawn.results(), host(both.host, rows, logits_of(4, 2), masks).results())
    assert drawn.tokens.shape == (1,)


def test_rows_are_the_same_to_the_last_bit_in_any_batch() -> None:
    kinds = [{"temperature": 0.0}, {"top_p": 0.7}, {"top_k": 9, "logit_bias": {3: 5.0}}, {"presence_penalty": 1.0}]
    logits = logits_of(5, 4)
    together = make()
    rows = [Row(number, 0, [1, 2, 3], 0, [], 1) for number in range(4)]
    for number, kind in enumerate(kinds):
        together.add(spec(number, logprobs=4, **kind))
    results = together.sample(rows, logits.clone()).results()
    for number, kind in enumerate(kinds):
        alone = make()
        alone.add(spec(number, logprobs=4, **kind))
        assert alone.sample([rows[number]], logits[number : number + 1].clone()).results() == [results[number]]


def test_a_row_that_cannot_be_sampled_fails_alone() -> None:
    sampler = make()
    faults: list[dict[str, Any]] = [
        {}, {}, {"allowed_token_ids": [7], "bad_words": [[7]]}, {"bad_words": [[V]]}, {"bad_words": [[1, V]]},
        {"logit_bias": {V: 1.0}}, {},
    ]  # fmt: skip
    for number, fields in enumerate(faults):
        sampler.add(spec(number, temperature=0.0, **fields))
    logits = logits_of(6, len(faults))
    logits[1, 17] = math.nan
    expected = logits.argmax(1).tolist()
    rows = [Row(number, 0, [1, 2, 3], 0, [], 1) for number in range(len(faults))]
    drawn = sampler.sample(rows, logits)
    results = drawn.results()
    assert [bool(result.error) for result in results] == [False, True, True, True, True, True, False]
    assert [result.fault for result in results[1:4]] == ["failed", "invalid", "failed"]
    assert (results[0].token_ids, results[6].token_ids) == ([expected[0]], [expected[6]])
    assert 0 <= int(drawn.tokens.min()) <= int(drawn.tokens.max()) < V


def test_a_sequence_without_memory_for_its_penalties_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = make()
    counted: list[Tensor] = []
    count = ops.count_tokens

    def watched(said: Tensor, last: Tensor, rows: Tensor, *entries: Tensor) -> None:
        counted.append(rows.clone())
        count(said, last, rows, *entries)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ops, "count_tokens", watched)
    sampler.add(spec(0, temperature=0.0, presence_penalty=1.0))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "cat", full)
        sampler.add(spec(1, temperature=0.0, presence_penalty=1.0))
    results = sampler.sample([Row(number, 0, [1, 2, 3], 0, [], 1) for number in (0, 1)], logits_of(6, 2)).results()
    assert [bool(result.error) for result in results] == [False, True]
    assert len(counted) == 1
    assert counted[0].tolist() == [0, 0, 0], "it has no row: that would be memory of somebody else"


def test_rows_on_the_device_are_used_again_and_start_afresh() -> None:
    sampler = make()
    logits = torch.zeros(1, V)
    logits[0, 7], logits[0, 8] = 1.0, 0.5
    for number in range(5):
        sampler.add(spec(number, tokens=[1], prompt=1, temperature=0.0, presence_penalty=2.0, bad_words=[[9]]))
        for start, token in ((0, 7), (1, 8)):
            row = Row(number, start, [1] if start == 0 else [DRAWN], 0, [], 1)
            assert sampler.sample([row], logits.clone()).results()[0].token_ids == [token]
        sampler.remove(number)
    assert sampler.inner._said.parts[0].size(0) == sampler.inner._steering.parts[0].size(0) == 1
