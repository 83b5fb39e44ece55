"""What happens in a simulation: a setup and a list of operations, drawn from a seed or written down.

Operations are plain data that name requests by number, so that any part of a list is a list too: what fails can be
shrunk, kept as JSON and played again.
"""

from __future__ import annotations

from random import Random

from msgspec import Struct, field
from msgspec.structs import replace

from octavo.config import CacheConfig, EngineConfig, SchedulerConfig, SchedulingPolicy
from octavo.engine.output import OutputKind
from octavo.plan import Capacity
from octavo.request import BACKGROUND, BeamSearchParams, SamplingParams
from simulation.oracle import DEADLY, SPECIAL, VOCABULARY

_WHOLE = 0.05  # share of seeds that simulate the whole service


class Setup(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The core that is simulated."""

    num_blocks: int = 32
    block_size: int = 4
    max_model_len: int = 64
    kept_blocks: int | None = None
    prefix_caching: bool = True
    max_num_batched_tokens: int = 16
    max_num_seqs: int = 4
    long_prefill_token_threshold: int = 0
    policy: SchedulingPolicy = "fcfs"
    watermark: float = 0.0
    max_num_queued_reqs: int | None = None
    max_num_queued_tokens: int | None = None
    tensors: bool = False  # the worker lays its rows out with the real block tables
    steps_ahead: int = 0
    host_blocks: int = 0
    least_swapped: int = 0  # tokens

    @property
    def config(self) -> EngineConfig:
        return EngineConfig(
            cache=CacheConfig(block_size=self.block_size, enable_prefix_caching=self.prefix_caching),
            scheduler=SchedulerConfig(
                max_num_batched_tokens=self.max_num_batched_tokens,
                max_num_seqs=self.max_num_seqs,
                long_prefill_token_threshold=self.long_prefill_token_threshold,
                scheduling_policy=self.policy,
                watermark=self.watermark,
                max_num_queued_reqs=self.max_num_queued_reqs,
                max_num_queued_tokens=self.max_num_queued_tokens,
            ),
        )

    @property
    def capacity(self) -> Capacity:
        return Capacity(
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            max_model_len=self.max_model_len,
            vocab_size=VOCABULARY,
            kept_blocks=self.kept_blocks,
            host_blocks=self.host_blocks,
            steps_ahead=self.steps_ahead,
        )


class Ask(Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """A caller asks for something."""

    prompt: list[int]
    max_tokens: int = 8
    min_tokens: int = 0
    n: int = 1
    beam: int = 0
    length_penalty: float = 1.0
    seed: int = 0
    eos: list[int] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    stop: list[str] = field(default_factory=list)
    shows_stop: bool = False
    detokenize: bool = True
    logprobs: bool = False
    prompt_logprobs: bool = False
    salt: str | None = None
    adapter: str | None = None
    priority: int = 0
    kind: OutputKind = "delta"
    again: bool = False  # under the id of the last one who left, if there is one

    @property
    def level(self) -> int:
        """The request's priority: the last of three is that of work that nobody waits for."""
        return BACKGROUND if self.priority == 2 else self.priority

    def params(self, *, stop_token_ids: list[int]) -> SamplingParams:
        return SamplingParams(
            n=self.n,
            max_tokens=self.max_tokens,
            min_tokens=self.min_tokens,
            stop=self.stop,
            stop_token_ids=stop_token_ids,
            include_stop_str_in_output=self.shows_stop,
            detokenize=self.detokenize,
            logprobs=0 if self.logprobs else None,
            prompt_logprobs=0 if self.prompt_logprobs else None,
            seed=self.seed,
        )

    @property
    def search(self) -> BeamSearchParams | None:
        if not self.beam:
            return None
        return BeamSearchParams(beam_width=self.beam, max_tokens=self.max_tokens, length_penalty=self.length_penalty)


class Leave(Struct, frozen=True, tag=True):
    """A caller goes away: the request's number, over or not; below 0, counted among those that are open."""

    request: int


class Step(Struct, frozen=True, tag=True):
    """The core's loop turns."""

    count: int


class Break(Struct, frozen=True, tag=True):
    """One row of the next step fails."""

    row: int


class Lag(Struct, frozen=True, tag=True):
    """From now on messages take so many turns."""

    to_core: int
    to_caller: int


class Jump(Struct, frozen=True, tag=True):
    """A step was slow, or the machine slept."""

    seconds: float


class Crash(Struct, frozen=True, tag=True):
    """The core dies, between two steps or in the next one. Of what it had said, `heard` messages arrive still."""

    in_step: bool
    heard: int
    foreign: bool = False  # killed from outside, for nothing it did


class Hang(Struct, frozen=True, tag=True):
    """The core stands still from its next step on, until someone notices and kills it."""


class Unloadable(Struct, frozen=True, tag=True):
    """So many cores in a row will die before they are ready."""

    count: int


class Drain(Struct, frozen=True, tag=True):
    """The engine is shut down: who is not done after so many seconds hears that."""

    seconds: float


class Settle(Struct, frozen=True, tag=True):
    """Nothing new comes: everything has to end, and all that was used has to be given back."""


Op = Ask | Leave | Step | Break | Lag | Jump | Crash | Hang | Unloadable | Drain | Settle


class Scenario(Struct, frozen=True, omit_defaults=True):
    setup: Setup
    ops: list[Op]
    whole: bool = False  # the whole service with its supervisor, not only the core and the way out
    note: str = ""  # what went wrong when this was found


def from_seed(seed: int, *, share_of_whole: float = _WHOLE, tensors: bool = False) -> Scenario:
    random = Random(seed)
    whole = random.random() < share_of_whole
    setup = replace(_setup(random), tensors=tensors)
    return Scenario(setup, _Workload(random, setup, whole).ops(), whole)


def _setup(random: Random) -> Setup:
    size = random.choice((1, 2, 4, 4, 8))
    num_blocks = max(2, random.choice((12, 24, 48, 96)) // size + random.randrange(8))
    return Setup(
        num_blocks=num_blocks,
        block_size=size,
        max_model_len=random.choice((12, 24, 48, 48)),
        kept_blocks=random.choice((None, None, 1, num_blocks // 2)),
        prefix_caching=random.random() < 0.85,
        max_num_batched_tokens=random.choice((1, 3, 8, 16, 16, 64)),
        max_num_seqs=random.choice((1, 2, 3, 5, 8, 24)),
        long_prefill_token_threshold=random.choice((0, 0, 0, 1, 5)),
        policy=random.choice(("fcfs", "priority")),
        watermark=random.choice((0.0, 0.0, 0.1, 0.3)),
        max_num_queued_reqs=random.choice((None, None, 1, 3)),
        max_num_queued_tokens=random.choice((None, None, 10, 60)),
        steps_ahead=random.choice((0, 0, 1, 1, 2)),
        host_blocks=random.choice((0, 0, 1, num_blocks // 2, 4 * num_blocks)),
        least_swapped=random.choice((0, 0, 5)),
    )


class _Workload:
    """Each seed has habits of its own: which kinds of request and of misfortune it knows, and how often they come."""

    def __init__(self, random: Random, setup: Setup, whole: bool) -> None:
        self._random = random
        self._whole = whole
        self._asked = 0
        capacity = min(setup.max_model_len, setup.num_blocks * setup.block_size)
        self._longest = random.choice((4, capacity // 2, capacity - 1))
        self._most_tokens = random.choice((1, 4, 12, 30))
        self._letters = random.choice((3, SPECIAL))  # prompts of few different tokens repeat each other
        self._prefixes = [self._tokens(capacity) for _ in range(random.choice((1, 2, 3)))]
        self._rates = {name: random.choice((0.0, 0.0, 0.1, 0.4)) for name in _HABITS}
        self._busy = random.choice((1, 2, 6, 15))  # steps between two events

    def ops(self) -> list[Op]:
        count = self._random.randrange(10, 60 if self._whole else 150)
        ops: list[Op] = []
        for _ in range(count):
            ops += self._event()
            ops.append(Step(1 + self._random.randrange(self._busy)))
        if self._whole and self._random.random() < 0.3:
            ops.append(Drain(self._random.choice((0.0, 0.1, 60.0))))
        return ops

    def _event(self) -> list[Op]:
        random = self._random
        match random.choices(("ask", "leave", "break", "lag", "jump", "crash", "settle", "burst"), self._weights())[0]:
            case "leave":
                return [Leave(random.randrange(-6, self._asked + 1))]
            case "break":
                return [Break(random.randrange(8))]
            case "lag":
                return [Lag(random.choice((0, 0, 1, 3)), random.choice((0, 0, 1, 3)))]
            case "jump":
                return [Jump(random.choice((0.5, 60.0, 1e6)))]
            case "crash":
                return self._crash()
            case "settle":
                return [Settle()]
            case "burst":
                return [self._ask() for _ in range(random.choice((3, 8, 30)))]
            case _:
                return [self._ask()]

    def _crash(self) -> list[Op]:
        random = self._random
        if self._whole and random.random() < 0.4:
            return [random.choice((Hang(), Unloadable(random.randrange(1, 4))))]
        crash = Crash(random.random() < 0.5, random.randrange(3), self._whole and random.random() < 0.5)
        return [crash, Step(1 + random.randrange(9)), Leave(-1)] if self._often("leave") else [crash]

    def _weights(self) -> list[float]:
        rates = self._rates
        return [1.0, 2 * rates["leave"], rates["break"], rates["lag"], rates["jump"] / 4, rates["crash"] / 2, 0.02, 0.1]

    def _ask(self) -> Ask:
        random = self._random
        self._asked += 1
        beam = random.choice((1, 2, 3)) if self._often("beam") else 0
        most = random.randint(1, min(self._most_tokens, 6) if beam else self._most_tokens)
        stopped = not beam and self._often("stop")
        return Ask(
            prompt=self._prompt(),
            max_tokens=most,
            min_tokens=random.randint(0, most) if not beam and self._often("min_tokens") else 0,
            n=1 if beam else random.choice((2, 2, 3, 4)) if self._often("n") else 1,
            beam=beam,
            length_penalty=random.choice((0.0, 1.0, 2.0)),
            seed=random.randrange(3),
            eos=[random.randrange(VOCABULARY) for _ in range(random.choice((0, 1, 8)))],
            stop_token_ids=[random.randrange(VOCABULARY)] if stopped else [],
            stop=random.choices(("a", "bc", "dda", "é", "cab", "abcab"), k=2) if stopped else [],
            shows_stop=random.random() < 0.3,
            detokenize=random.random() < 0.9,
            logprobs=not beam and self._often("logprobs"),
            prompt_logprobs=not beam and self._often("prompt_logprobs"),
            salt=random.choice(("a", "b")) if self._often("salt") else None,
            adapter=random.choice(("a", "b")) if self._often("adapter") else None,
            priority=random.randrange(3),
            kind=random.choice(("delta", "delta", "cumulative", "final")),
            again=self._whole and self._often("again"),
        )

    def _prompt(self) -> list[int]:
        random = self._random
        if self._often("too_long"):
            return self._tokens(random.choice((0, 200)))
        if self._whole and self._often("deadly"):
            return [DEADLY, *self._tokens(3)]
        length = random.randint(1, max(1, self._longest))
        shared = random.choice(self._prefixes)[: random.randint(0, length)]
        return shared + self._tokens(length - len(shared))

    def _tokens(self, count: int) -> list[int]:
        return [self._random.randrange(self._letters) for _ in range(count)]

    def _often(self, habit: str) -> bool:
        return self._random.random() < self._rates[habit]


_HABITS = (
    *("leave", "break", "lag", "jump", "crash"),
    *(
        "beam",
        "n",
        "stop",
        "min_tokens",
        "logprobs",
        "prompt_logprobs",
        "salt",
        "adapter",
        "too_long",
        "deadly",
        "again",
    ),
)
