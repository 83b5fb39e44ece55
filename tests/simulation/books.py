"""The invariants, and those of one core: checked before and after every step against books of our own.

Each has a name that a `Violation` says. `World` checks the last ones, from where the callers are.

budget      a plan keeps within its tokens and its sequences, and gets something done whenever there is work
writable    a block is written only by its one owner, and never while the prefix cache offers it
row         what a row says of its sequence is true, and the worker's block table is the scheduler's
promise     of each sequence just the draws under way are expected, and none is ordered beyond a certain end
tenant      nobody reads a block that another tenant or adapter has filled
owners      references = owners; every block is either owned or free; a table covers just what is computed
swap        host blocks have one owner, who waits; what comes in goes to a block of its owner alone
place       every live sequence is in exactly one of waiting and running, in order
cache       equal keys are equal content of the same tenant, and the other way round
queue       who is refused and how many wait, as counted here
output      every token, end and log-probability is what the request says alone, said once
ledger      who is on the core is who was let in and has not ended; what was taken is what has ended
transcript  a caller hears what the request says alone, and one end
liveness    when nothing more comes or goes wrong, everything ends within the steps it needs
leak        then every block is free and nobody is remembered
crash       nothing raises
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from octavo.engine.channel import Abort, Add, ToCore
from octavo.engine.core import StepOutputs, row_work
from octavo.plan import DRAWN, StepPlan
from octavo.request import Output, Request
from octavo.scheduling.scheduler import Scheduler
from octavo.scheduling.sequence import Sequence
from simulation.oracle import Alone, prompt_logprobs
from simulation.worker import Worker


class Violation(Exception):
    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant
        self.step = 0  # at which it was noticed


def demand(condition: bool, invariant: str, detail: str, *values: object) -> None:
    """The values are put into `detail` only when it is needed: this is asked millions of times."""
    if not condition:
        raise Violation(invariant, detail.format(*values))


@dataclass(slots=True)
class Aboard:
    """A request that the core has let in."""

    alone: Alone
    said: dict[int, int]  # output tokens by index, of the sequences that have begun
    live: set[int] = field(default_factory=set)  # indices that have not ended
    first_start: int | None = None  # position of the first token computed for it
    beams_said: int = 0

    @property
    def forked(self) -> bool:
        return bool(self.said)


@dataclass(slots=True)
class UnderWay:
    """A step that the core has ordered and not told of."""

    shares: list[tuple[Aboard, int, float]] = field(default_factory=list)  # whose row, which sequence, how much work
    starts: list[Aboard] = field(default_factory=list)
    failing: tuple[Aboard, int] | None = None  # whose row fails, and which sequence's


class Books:
    """Everything known about one core from outside; `scheduler` and `worker` are only looked at."""

    def __init__(self, scheduler: Scheduler, worker: Worker, alone: Callable[[Request], Alone]) -> None:
        self._scheduler = scheduler
        self._worker = worker
        self._alone = alone
        self._aboard: dict[str, Aboard] = {}
        self._queued: dict[str, int] = {}  # requests that have not started, and their prompts' lengths
        self._refused: dict[str, str] = {}  # that this turn has to refuse, and whose fault it is
        self._tenants: list[tuple[str | None, str | None] | None] = [None] * worker.capacity.num_blocks
        self._host_tenants: list[tuple[str | None, str | None] | None] = [None] * worker.capacity.host_blocks
        self._meaning: dict[bytes, object] = {}
        self._spelling: dict[object, bytes] = {}
        self._under_way: deque[UnderWay] = deque()
        self._checks = 0

    def __len__(self) -> int:
        """Requests on the core."""
        return len(self._aboard)

    def __iter__(self) -> Iterator[str]:
        return iter(self._aboard)

    # ------------------------------------------------------------------ messages

    def expect(self, messages: list[ToCore]) -> None:
        """The core is about to take these in."""
        for message in messages:
            match message:
                case Add(request):
                    self._expect_request(request)
                case Abort(request_id, index):
                    self._expect_end(request_id, index)

    def _expect_request(self, request: Request) -> None:
        scheduler = self._scheduler
        config = scheduler.config
        length = len(request.prompt_token_ids)
        capacity = min(scheduler.max_model_len, scheduler.pool.count * scheduler.block_size)
        waiting = sum(self._queued.values())
        most, limit = config.max_num_queued_reqs, config.max_num_queued_tokens
        if not 0 < length < capacity:
            self._refused[request.request_id] = "invalid"
            return
        full = most is not None and len(self._queued) >= most + config.max_num_seqs - self._seated()
        full = full or (limit is not None and waiting > 0 and waiting + length > limit)
        if full and request.resumes is None:
            self._refused[request.request_id] = "overloaded"
            return
        said = {known.index: len(known.token_ids) for known in request.resumes or []}
        self._aboard[request.request_id] = Aboard(self._alone(request), said, set(said))
        self._queued[request.request_id] = length

    def _seated(self) -> int:
        """Sequences that run, but for those whose end is among the messages."""
        return sum(map(self._lives, self._scheduler.running))

    def _lives(self, sequence: Sequence) -> bool:
        known = self._aboard.get(sequence.group.request.request_id)
        return known is not None and (not known.forked or sequence.index in known.live)

    def _expect_end(self, request_id: str, index: int | None) -> None:
        known = self._aboard.get(request_id)
        if known is None:
            return
        if index is not None and known.forked:
            known.live.discard(index)
            if known.live:
                return
        self._end(request_id)

    def _end(self, request_id: str) -> None:
        del self._aboard[request_id]
        self._queued.pop(request_id, None)

    # ------------------------------------------------------------------ plans

    def watch(self, plan: StepPlan) -> None:
        """A plan was made and is about to be run."""
        scheduler = self._scheduler
        tokens = sum(len(row.token_ids) for row in plan.rows)
        demand(0 < tokens <= scheduler.config.max_num_batched_tokens, "budget", "{} tokens", tokens)
        demand(
            len(scheduler.running) <= scheduler.config.max_num_seqs, "budget", "{} sequences", len(scheduler.running)
        )
        demand(len({row.sequence_id for row in plan.rows}) == len(plan.rows), "budget", "two rows for a sequence")
        step = scheduler.under_way[-1]
        demand(step.number == plan.step and len(step.parts) == len(plan.rows), "row", "step {}", plan.step)
        self._under_way.append(ordered := UnderWay())
        most = self._worker.capacity.steps_ahead + 1
        demand(len(self._under_way) <= most, "budget", "{} steps under way", len(self._under_way))
        self._watch_swaps(plan)
        self._watch_copies(plan)
        for place, row in enumerate(plan.rows):
            sequence = step.parts[row.sequence_id].sequence
            start, end = row.start, row.start + len(row.token_ids)
            known = self._aboard.get(sequence.group.request.request_id)
            demand(known is not None and end == sequence.computed, "row", "row of {} at {}", sequence.id, start)
            assert known is not None
            true = row.token_ids == (sequence.tokens[start:end] or [DRAWN])
            demand(true, "row", "{} computes {} at {}", sequence.id, row.token_ids, start)
            if row.token_ids == [DRAWN]:
                self._watch_foresight(known, sequence, start)
            self._watch_blocks(sequence, start, end)
            if self._worker.faulty_row is not None and place == self._worker.faulty_row % len(plan.rows):
                ordered.failing = known, sequence.index
            if known.first_start is None:
                known.first_start = start
                ordered.starts.append(known)
                queued = self._queued.pop(known.alone.request.request_id, None)
                demand(queued is not None, "queue", "{} starts twice", known.alone.request.request_id)
            ordered.shares.append((known, sequence.index, row_work(row)))

    def _watch_foresight(self, known: Aboard, sequence: Sequence, position: int) -> None:
        """A token is computed that nobody has seen: of a line that goes on whatever it is, before its certain end."""
        request, alone = known.alone.request, known.alone
        plain = request.beam is None and (known.forked or (alone.width == 1 and request.params.prompt_logprobs is None))
        demand(plain, "promise", "{} is computed ahead", sequence.id)
        output = position - len(request.prompt_token_ids)
        demand(output + 1 < alone.most, "promise", "{} computes its last token", sequence.id)

    def _watch_swaps(self, plan: StepPlan) -> None:
        pool, cached = self._scheduler.pool, self._scheduler.prefix_cache._key_of
        for block, host in plan.swaps_out:
            self._host_tenants[host] = self._tenants[block]
        for block, host in plan.swaps_in:
            alone = pool.references[block] == 1 and block not in cached
            demand(alone, "swap", "block {} comes in and has {} owners", block, pool.references[block])
            self._tenants[block] = self._host_tenants[host]

    def _watch_copies(self, plan: StepPlan) -> None:
        written: set[int] = set()
        for source, destination in plan.copies:
            demand(source not in written, "writable", "block {} is copied to and from in one step", source)
            written.add(destination)
            self._tenants[destination] = self._tenants[source]

    def _watch_blocks(self, sequence: Sequence, start: int, end: int) -> None:
        """What the step writes is its own; all it reads was filled by its own kind."""
        pool, size = self._scheduler.pool, self._scheduler.block_size
        cached = self._scheduler.prefix_cache._key_of
        blocks, tenants = sequence.blocks, self._tenants
        tenant = (sequence.group.request.adapter, sequence.group.request.cache_salt)
        first, after = start // size, -(-end // size)
        demand(len(blocks) == after, "owners", "{} blocks for {} tokens", len(blocks), end)
        for block in blocks[first:]:
            demand(pool.references[block] == 1, "writable", "block {} has {} owners", block, pool.references[block])
            demand(block not in cached, "writable", "block {} is offered by the prefix cache", block)
        for block in blocks[:first]:
            demand(tenants[block] == tenant, "tenant", "{} reads block {} of {}", tenant, block, tenants[block])
        if start % size:
            demand(
                tenants[blocks[first]] == tenant,
                "tenant",
                "{} goes on in a block of {}",
                tenant,
                tenants[blocks[first]],
            )
        for block in blocks[first:]:
            tenants[block] = tenant

    # ------------------------------------------------------------------ outputs

    def take(self, step: StepOutputs) -> None:
        """What the core says."""
        ordered = self._under_way.popleft() if step.work else UnderWay()
        self._check_shares(step, ordered)
        starts = [known.alone.request.request_id for known in ordered.starts if self._is_aboard(known)]
        demand(sorted(step.started) == sorted(starts), "queue", "{} start, not {}", starts, list(step.started))
        failing = ordered.failing[0] if ordered.failing and self._still_lives(*ordered.failing) else None
        for output in step.outputs:
            if (fault := self._refused.pop(output.request_id, None)) is not None:
                demand(output.fault == fault and output.error is not None, "queue", "{} was let in", output.request_id)
            elif output.error is not None:
                self._take_failure(output, failing)
            elif output.cumulative_logprob is not None:
                self._take_beam(output)
            else:
                self._take_token(output)
        lives = failing is not None and self._is_aboard(failing)
        demand(not lives, "output", "a request goes on although a row failed")

    def _is_aboard(self, known: Aboard) -> bool:
        """Not just another of its name."""
        return self._aboard.get(known.alone.request.request_id) is known

    def _still_lives(self, known: Aboard, index: int) -> bool:
        return self._is_aboard(known) and (not known.forked or index in known.live)

    def _check_shares(self, step: StepOutputs, ordered: UnderWay) -> None:
        """What a step cost is shared by those who are still there."""
        shares: Counter[str] = Counter()
        for known, index, cost in ordered.shares:
            if self._still_lives(known, index):
                shares[known.alone.request.request_id] += cost
        true = step.shares.keys() == shares.keys()
        true = true and all(math.isclose(step.shares[request_id], cost) for request_id, cost in shares.items())
        demand(true, "cost", "{} instead of {}", step.shares, shares)
        total = sum(cost for _, _, cost in ordered.shares)
        demand(math.isclose(step.work, total), "cost", "{} instead of {}", step.work, total)

    def _take_failure(self, output: Output, failing: Aboard | None) -> None:
        demand(
            output.request_id in self._aboard, "output", "{} failed after its end: {}", output.request_id, output.error
        )
        demand(self._aboard[output.request_id] is failing, "output", "{} failed without cause", output.request_id)
        self._end(output.request_id)

    def _take_token(self, output: Output) -> None:
        known = self._aboard.get(output.request_id)
        demand(known is not None, "output", "{} speaks after its end", output.request_id)
        assert known is not None
        alone, index = known.alone, output.index
        request = alone.request
        if not known.forked:
            known.said = dict.fromkeys(range(alone.width), 0)
            known.live = set(known.said)
            demand(output.cached_tokens == known.first_start, "output", "{} cached tokens", output.cached_tokens)
        demand(index in known.live, "output", "{}[{}] speaks after its end", output.request_id, index)
        who, place = (output.request_id, index), known.said[index]
        token, reason = alone.step(index, place)
        demand(output.token_ids == [token], "output", "{}[{}] says {}, alone {}", *who, output.token_ids, token)
        demand(output.finish_reason == reason, "output", "{}[{}] ends {}, alone {}", *who, output.finish_reason, reason)
        if reason == "stop":
            demand(output.stop_token_id == token, "output", "{}[{}] stopped by {}", *who, output.stop_token_id)
        if request.params.logprobs is not None:
            logprobs = output.logprobs or []
            values = [value.logprobs[0] for value in logprobs]
            demand(values == [alone.line(index).logprobs[place]], "output", "{}[{}] log-probability {}", *who, values)
        if request.params.prompt_logprobs is not None and index == 0 and place == 0:
            self._take_prompt_logprobs(output, request)
        else:
            demand(output.prompt_logprobs is None, "output", "{}[{}] prompt log-probabilities again", *who)
        known.said[index] += 1
        if reason is not None:
            known.live.discard(index)
            if not known.live:
                self._end(output.request_id)

    def _take_prompt_logprobs(self, output: Output, request: Request) -> None:
        values = [entry.logprobs[0] for entry in output.prompt_logprobs or []]
        alone = prompt_logprobs(request.prompt_token_ids)
        demand(values == alone, "output", "{}: prompt log-probabilities {}, alone {}", output.request_id, values, alone)

    def _take_beam(self, output: Output) -> None:
        known = self._aboard.get(output.request_id)
        demand(known is not None, "output", "{} speaks after its end", output.request_id)
        assert known is not None
        beams = known.alone.beams
        demand(output.index == known.beams_said < len(beams), "output", "{}: beam {}", output.request_id, output.index)
        said = (output.token_ids, output.cumulative_logprob)
        demand(said == beams[output.index], "output", "{}: {}, alone {}", output.request_id, said, beams[output.index])
        known.beams_said += 1
        if known.beams_said == len(beams):
            self._end(output.request_id)

    # ------------------------------------------------------------------ after a turn

    def check(self) -> None:
        """The state that every turn leaves behind."""
        if self._worker.killed:
            return  # it is behind for good, which the core is about to learn
        demand(not self._refused, "queue", "{} should have been refused", list(self._refused))
        scheduler = self._scheduler
        groups = scheduler._groups
        demand(groups.keys() == self._aboard.keys(), "ledger", "{} instead of {}", list(groups), list(self._aboard))
        demand(scheduler._queued_requests == len(self._queued), "queue", "{} requests", scheduler._queued_requests)
        demand(scheduler._queued_tokens == sum(self._queued.values()), "queue", "{} tokens", scheduler._queued_tokens)
        self._check_places()
        self._check_promises()
        self._check_owners()
        self._check_workers()
        self._check_cache()

    def _check_places(self) -> None:
        scheduler = self._scheduler
        placed = scheduler.running + scheduler.waiting
        live = [sequence for group in scheduler._groups.values() for sequence in group.live]
        demand(len(placed) == len(live) and set(map(id, placed)) == set(map(id, live)), "place", "{}", len(placed))
        for line in (scheduler.running, scheduler.waiting):
            keys = [(*sequence.group.key, sequence.id) for sequence in line]
            demand(keys == sorted(keys), "place", "out of order")

    def _check_promises(self) -> None:
        """A sequence has one draw under way for each of its rows that reached its end."""
        scheduler = self._scheduler
        due: Counter[int] = Counter()
        for step in scheduler.under_way:
            due.update(part.sequence.id for part in step.parts.values() if part.promises)
        for sequence in scheduler.running + scheduler.waiting:
            demand(sequence.promised == due[sequence.id], "promise", "{} of {}", sequence.promised, due[sequence.id])

    def _check_owners(self) -> None:
        scheduler = self._scheduler
        pool, size = scheduler.pool, scheduler.block_size
        owners = [0] * pool.count
        for sequence in scheduler.running:
            blocks, computed = sequence.blocks, sequence.computed
            demand(len(blocks) == -(-computed // size), "owners", "{} blocks for {} tokens", len(blocks), computed)
            going = computed < len(sequence.tokens) or sequence.promised or sequence.candidates
            demand(bool(going), "row", "nothing is left to compute")
            for block in blocks:
                owners[block] += 1
        for sequence in scheduler.waiting:
            demand(not sequence.blocks and not sequence.computed, "owners", "{} waits with blocks", sequence.id)
        demand(pool.references == owners, "owners", "{} references, {} owners", pool.references, owners)
        free = pool._free
        used = sum(map(bool, owners))
        demand(len(free) + used == pool._used, "owners", "{} free, {} owned, {} used", len(free), used, pool._used)
        demand(not any(owners[block] for block in free), "owners", "a free block is owned")
        demand(not any(owners[pool._used :]), "owners", "an unused block is owned")
        self._check_swapped()
        leaving = {block for block, _ in scheduler.swap_space._leaving}
        for block in free:
            if block not in pool._kept and block not in leaving:
                self._worker.poison(block)
                self._tenants[block] = None

    def _check_swapped(self) -> None:
        scheduler = self._scheduler
        space, size = scheduler.swap_space, scheduler.block_size
        held = [block for sequence in scheduler.waiting for block in sequence.swapped]
        demand(sorted(held + space._free) == list(range(space.count)), "swap", "{} held, {} free", held, space._free)
        for sequence in scheduler.waiting:
            blocks, tokens = len(sequence.swapped), sequence.swapped_tokens
            demand(blocks == -(-tokens // size), "swap", "{} host blocks for {} tokens", blocks, tokens)
        demand(not any(sequence.swapped for sequence in scheduler.running), "swap", "swapped and running")
        for block in space._free:
            self._worker.poison_host(block)
            self._host_tenants[block] = None

    def _check_workers(self) -> None:
        scheduler, worker = self._scheduler, self._worker
        known = 0
        for sequence in scheduler.running:
            if sequence.known_to_workers:
                known += 1
                sent = sequence.blocks[: sequence.sent]
                table = worker.tables.get(sequence.id)
                demand(table is not None and table[: len(sent)] == sent, "row", "{} instead of {}", table, sent)
        demand(len(worker.specs) == known + len(scheduler._removed), "row", "a worker remembers who is gone")

    def _check_cache(self) -> None:
        """Now and then every block that can be found: its key says what it holds and for whom."""
        self._checks += 1
        if self._checks % 4 and self._scheduler.has_work:
            return
        cache, pool, content = self._scheduler.prefix_cache, self._scheduler.pool, self._worker.content
        demand(pool._kept == cache._key_of.keys(), "cache", "blocks are kept that cannot be found, or the reverse")
        demand(len(cache._block_of) == len(cache._key_of), "cache", "keys and blocks differ in number")
        for block, key in cache._key_of.items():
            demand(cache._block_of.get(key) == block, "cache", "block {} is not found by its key", block)
            holds = (self._tenants[block], content[block][-1])
            demand(
                self._meaning.setdefault(key, holds) == holds,
                "cache",
                "a key means {} and {}",
                self._meaning[key],
                holds,
            )
            demand(self._spelling.setdefault(holds, key) == key, "cache", "two keys for {}", holds)
