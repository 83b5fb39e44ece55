"""The scheduler: one rule, *computed catches up with known*, within a budget of tokens and blocks.

A step gives each sequence min(known - computed, what the budget leaves). A prompt in chunks, a prefix found in the
cache, one token of decoding and the recomputation after a preemption are all that rule; nothing here asks which.
`schedule()` makes a plan, `update(result)` takes what came of the first one that it has not taken; several may be under
way. A token that was drawn and not seen yet is ordered as `DRAWN`. `add` and `abort` come at any time.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from itertools import chain

from octavo.config import SchedulerConfig
from octavo.errors import ContextTooLong, Overloaded
from octavo.plan import DRAWN, Row, RowResult, StepPlan, StepResult, fork_seed
from octavo.request import BACKGROUND, Continuation, FinishReason, Logprobs, Output, Request
from octavo.scheduling import beam
from octavo.scheduling.blocks import BlockPool
from octavo.scheduling.policy import POLICIES
from octavo.scheduling.prefix_cache import PrefixCache
from octavo.scheduling.sequence import Group, Hypothesis, Sequence
from octavo.scheduling.step import Part, Step
from octavo.scheduling.swap import SwapSpace


class Scheduler:
    """Requests in, step plans out. Holds every live sequence in exactly one of `waiting` and `running`.

    hash_seed: random bytes that make this process's prefix keys unguessable. whole_prompts: none is computed in pieces.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        *,
        num_blocks: int,
        block_size: int,
        max_model_len: int,
        host_blocks: int = 0,
        kept_blocks: int | None = None,
        enable_prefix_caching: bool = True,
        hash_seed: bytes = b"",
        whole_prompts: bool = False,
    ) -> None:
        assert not whole_prompts or max_model_len <= config.max_num_batched_tokens
        self.config = config
        self.max_model_len = max_model_len
        self.block_size = block_size
        self.pool = BlockPool(num_blocks, kept_blocks)
        self.swap_space = SwapSpace(host_blocks)
        self.whole_prompts = whole_prompts
        self.prefix_cache = PrefixCache(self.pool, block_size, hash_seed, enable_prefix_caching and not whole_prompts)
        self.waiting: list[Sequence] = []  # both in the policy's order
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.refused_requests = self.refused_tokens = 0  # requests, because too many or too many tokens waited
        self.under_way: deque[Step] = deque()  # planned, and without a result yet
        self._started: list[Group] = []  # since the latest plan
        self._preempted: list[Sequence] = []
        self._crowded = False  # somebody found no place in the latest step
        self._policy = POLICIES[config.scheduling_policy]
        self._reserve = int(config.watermark * num_blocks)
        self._groups: dict[str, Group] = {}
        self._removed: list[int] = []  # ids to tell the workers with the next plan
        self._arrivals = self._ids = self._steps = 0
        self._queued_requests = self._queued_tokens = 0  # that have not started; tokens of their prompts

    # ------------------------------------------------------------------ requests come and go

    @property
    def has_work(self) -> bool:
        return bool(self._groups)

    @property
    def kv_usage(self) -> float:
        """Share of blocks owned by sequences, 0 … 1."""
        return 1.0 - self.pool.free / self.pool.count

    def add(self, request: Request) -> None:
        """Queue a request. Raises ContextTooLong if it can never run, Overloaded if too many wait.

        One that resumes was accepted before: it is queued however many wait, and goes on where it was.
        """
        length = len(request.prompt_token_ids)
        most = self._capacity - (request.pooling is None)
        if not 0 < length <= most:
            output = "" if request.pooling else "with at least one token of output "
            raise ContextTooLong(f"the prompt has {length} tokens; {output}1 to {most} fit", param="prompt")
        if request.resumes is None:
            self._check_queue(length)
        key = self._policy(request, self._arrivals)
        root = self.prefix_cache.root(request.adapter, request.cache_salt)
        longest = min(length + request.max_tokens, self._capacity)
        group = Group(request, key, frozenset(request.end_token_ids), longest, forked=bool(request.resumes))
        self._arrivals += 1
        self._groups[request.request_id] = group  # from here on nothing can fail
        for known in request.resumes or [Continuation(0, [])]:
            tokens = [*request.prompt_token_ids, *known.token_ids]
            seed = fork_seed(request.seed, known.index)
            insort(self.waiting, self._sequence(group, known.index, seed, tokens, [root]), key=_order)
        self._queued_tokens += length
        self._queued_requests += 1

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Forget a request, or one of its sequences, at any moment; unknown ones are ignored (just finished)."""
        group = self._groups.get(request_id)
        if group is None:
            return
        if index is not None and group.forked:
            for sequence in [member for member in group.live if member.index == index]:
                self._end_sequence(sequence)
        else:
            del self._groups[request_id]
            self._end_group(group)

    def _check_queue(self, tokens: int) -> None:
        """Who finds a free seat starts with the next step and does not wait."""
        most, limit = self.config.max_num_queued_reqs, self.config.max_num_queued_tokens
        free_seats = self.config.max_num_seqs - len(self.running)
        if most is not None and self._queued_requests >= most + free_seats:
            self.refused_requests += 1
            raise Overloaded(f"{self._queued_requests} requests are waiting already; try again later")
        if limit is not None and self._queued_tokens and self._queued_tokens + tokens > limit:
            self.refused_tokens += 1
            raise Overloaded(f"{self._queued_tokens} prompt tokens are waiting already; try again later")

    def forget(self) -> None:
        """The workers know nothing any more, and blocks hold nothing. There may be no request, nor a step under way."""
        assert not self._groups
        assert not self.under_way
        self.pool.clear()
        self.prefix_cache.clear()
        self._removed.clear()

    # ------------------------------------------------------------------ schedule

    def schedule(self) -> StepPlan | None:
        """The next step; None while there is nothing to compute before another result is taken."""
        plan = StepPlan(step=self._steps, added=[], rows=[], copies=[], removed=[])
        parts: dict[int, Part] = {}
        self._make_way()
        preempted = self._continue_running(plan, parts)
        if not preempted:
            self._admit_waiting(plan, parts)
        while not parts and self.waiting and self.running and not self._expects_tokens():
            # Only beams that wait for their siblings run, and hold the blocks those need.
            self._preempt(self.running[-1])
            self._admit_waiting(plan, parts)
        if not parts:
            return None
        self.under_way.append(Step(self._steps, parts, self._started, self._preempted))
        self._started, self._preempted = [], []
        self._steps += 1
        self.swap_space.order(plan)
        plan.removed.extend(self._removed)
        self._removed.clear()
        return plan

    def _expects_tokens(self) -> bool:
        """Whether a draw is under way for anybody: when it arrives, there may be more to do."""
        return any(sequence.promised for sequence in chain(self.running, self.waiting))

    def _make_way(self) -> None:
        """Work that nobody waits for gives its place to a request that found none in the step before."""
        if self._crowded and self.waiting and self.running:
            first, last = self.waiting[0], self.running[-1]
            if _in_background(last) and not _in_background(first):
                self._preempt(last)
        self._crowded = False

    def _continue_running(self, plan: StepPlan, parts: dict[int, Part]) -> bool:
        """Rows for running sequences, in order; preempts from the end while blocks are short."""
        budget = self.config.max_num_batched_tokens
        before = self.preemptions
        position = 0
        while position < len(self.running) and budget:
            sequence = self.running[position]
            count = self._share(sequence, budget)
            while count and not self._grow(plan, sequence, count):
                victim = self.running[-1]
                self._preempt(victim)
                if victim is sequence:
                    return True
            if count:
                parts[sequence.id] = self._order_row(plan, sequence, count)
                budget -= count
            position += 1
        return self.preemptions > before

    def _admit_waiting(self, plan: StepPlan, parts: dict[int, Part]) -> None:
        budget = self.config.max_num_batched_tokens - plan.token_count
        while budget > 0 and len(self.running) < self.config.max_num_seqs:
            sequence = next((candidate for candidate in self.waiting if candidate.promised or candidate.missing), None)
            if sequence is None or sequence.promised:
                break  # nobody overtakes one whose token is on its way
            self._adopt_prefix(sequence)
            found = len(sequence.blocks)
            sequence.computed = max(sequence.computed, sequence.swapped_tokens)
            count = self._share(sequence, budget)
            if not count or not self._grow(plan, sequence, count, reserve=self._reserve if self.running else 0):
                self._give_up_blocks(sequence)
                break
            self.waiting.remove(sequence)
            insort(self.running, sequence, key=_order)
            self.swap_space.fetch(plan, sequence, found)
            self._count_prefix(sequence)
            parts[sequence.id] = self._order_row(plan, sequence, count)
            budget -= count
        self._crowded = budget > 0 and bool(self.waiting)

    def _share(self, sequence: Sequence, budget: int) -> int:
        if self.whole_prompts:
            return sequence.missing if sequence.missing <= budget else 0
        cap = self.config.long_prefill_token_threshold
        alone = len(self.running) + len(self.waiting) == 1
        return min(sequence.missing, budget, cap if cap and not alone else budget)

    def _grow(self, plan: StepPlan, sequence: Sequence, count: int, reserve: int = 0) -> bool:
        """Own blocks for `count` more tokens: new ones at the end, a private copy of a shared one that is written."""
        first = sequence.computed // self.block_size
        copy = first < len(sequence.blocks) and self.pool.is_shared(sequence.blocks[first])
        wanted = -(-(sequence.computed + count) // self.block_size)
        fresh = wanted - len(sequence.blocks)
        if fresh + copy + reserve > self.pool.free:
            return False
        if copy:
            shared, own = sequence.blocks[first], self.pool.allocate()
            plan.copies.append((shared, own))
            self.pool.release([shared])
            sequence.blocks[first] = own
            sequence.sent = min(sequence.sent, first)
        sequence.blocks.extend(self.pool.allocate() for _ in range(fresh))
        return True

    def _order_row(self, plan: StepPlan, sequence: Sequence, count: int) -> Part:
        if not sequence.known_to_workers:
            plan.added.append(sequence.spec())
            sequence.known_to_workers = True
        start, end = sequence.computed, sequence.computed + count
        group = sequence.group
        draws = 0
        if last := end == len(sequence.tokens) + sequence.promised:
            draws = 1 if group.forked else group.request.draws
        plan.rows.append(
            Row(
                sequence_id=sequence.id,
                start=start,
                token_ids=sequence.tokens[start:end] or [DRAWN],
                first_block=sequence.sent,
                block_ids=sequence.blocks[sequence.sent :],
                draws=draws,
            )
        )
        sequence.sent = len(sequence.blocks)
        sequence.computed = end
        sequence.promised += last
        return Part(sequence, start, end, sequence.incarnation, last)

    def _adopt_prefix(self, sequence: Sequence) -> None:
        """Start from the blocks that the prefix cache holds; at least one token is left to compute."""
        if not self.prefix_cache.enabled:
            return
        if sequence.group.request.params.prompt_logprobs is not None and not sequence.group.forked:
            return  # the logits of every position are wanted
        if (pooling := sequence.group.request.pooling) is not None and pooling.needs_every_position:
            return
        usable = (len(sequence.tokens) - 1) // self.block_size
        self.prefix_cache.extend(sequence.keys, sequence.tokens, usable * self.block_size)
        sequence.blocks = self.prefix_cache.match(sequence.keys[1 : usable + 1])
        sequence.findable = len(sequence.blocks)
        sequence.computed = sequence.findable * self.block_size

    def _count_prefix(self, sequence: Sequence) -> None:
        group = sequence.group
        if group.cached_tokens is None:
            self._leave_queue(group)
            group.cached_tokens = sequence.computed
            self._started.append(group)
            if self.prefix_cache.enabled and not group.forked:
                self.prefix_cache.queries += len(sequence.tokens)
                self.prefix_cache.hits += sequence.computed

    def _leave_queue(self, group: Group) -> None:
        self._queued_requests -= 1
        self._queued_tokens -= len(group.request.prompt_token_ids)

    def _preempt(self, sequence: Sequence) -> None:
        """Give all its blocks back and queue it again: what is not kept elsewhere will be computed once more.

        What its rows under way write into those blocks is over before whoever gets them writes there.
        """
        self.swap_space.keep(sequence)
        self.running.remove(sequence)
        self._give_up_blocks(sequence)
        self._forget(sequence)
        insort(self.waiting, sequence, key=_order)
        self.preemptions += 1
        self._preempted.append(sequence)

    # ------------------------------------------------------------------ update

    def update(self, result: StepResult) -> list[Output]:
        """Take the results of the first step under way: tokens become known, full blocks findable, sequences end."""
        step = self.under_way.popleft()
        assert result.step == step.number
        failed = {row.sequence_id for row in result.rows if row.error is not None}
        for part in step.parts.values():
            sequence = part.sequence
            sequence.promised -= part.promises
            if sequence.incarnation == part.incarnation and sequence.id not in failed:
                self._make_findable(sequence, part.end)
        outputs: list[Output] = []
        for row in result.rows:
            part = step.parts[row.sequence_id]
            sequence = part.sequence
            group = sequence.group
            if sequence not in group.live:
                continue  # it ended meanwhile
            if row.error is not None:
                outputs.append(self._fail(group, row))
                continue
            if row.prompt_logprobs is not None and not group.forked:
                group.prompt_logprobs[part.start :] = row.prompt_logprobs  # a preempted prompt starts over
            if row.pooled is not None:
                outputs.append(self._take_pooled(sequence, row.pooled))
            if row.token_ids:
                outputs.extend(self._take_beams(sequence, row) if group.request.beam else self._take(sequence, row))
        return outputs

    def _make_findable(self, sequence: Sequence, end: int) -> None:
        """Positions up to `end` are computed."""
        full = end // self.block_size
        if full == sequence.findable or not self.prefix_cache.enabled:
            return
        self.prefix_cache.extend(sequence.keys, sequence.tokens, end)
        for logical in range(sequence.findable, full):
            self.prefix_cache.insert(sequence.keys[logical + 1], sequence.blocks[logical])
        sequence.findable = full

    def _take(self, sequence: Sequence, row: RowResult) -> list[Output]:
        """The drawn tokens continue the sequence; a prompt with n draws forks into n sequences."""
        group = sequence.group
        members = [sequence]
        if not group.forked:
            group.fork()
            members += [self._fork(sequence, index) for index in range(1, len(row.token_ids))]
        outputs = []
        for place, (member, token) in enumerate(zip(members, row.token_ids, strict=True)):
            member.tokens.append(token)
            complete = row.complete is not None and row.complete[place]
            reason = self._finish_reason(member, token, complete)
            logprobs = [row.logprobs[place]] if row.logprobs is not None else None
            outputs.append(self._output(member, token, logprobs, reason))
            if reason is not None:
                self._end_sequence(member)
        return outputs

    def _take_pooled(self, sequence: Sequence, pooled: bytes) -> Output:
        """The prompt is computed, and nothing follows it."""
        group = sequence.group
        self._end_sequence(sequence)
        return Output(
            request_id=group.request.request_id,
            finish_reason="stop",
            cached_tokens=group.cached_tokens or 0,
            pooled=pooled,
        )

    def _take_beams(self, sequence: Sequence, row: RowResult) -> list[Output]:
        """A beam's candidates arrived; once every sibling's are here, the best continuations live on."""
        assert row.logprobs is not None
        sequence.candidates = list(zip(row.token_ids, row.logprobs[0].logprobs, strict=True))
        group = sequence.group
        group.fork()
        search = group.request.beam
        assert search is not None
        if not all(member.candidates for member in group.live):
            return []
        successors, ended = beam.advance(group.live, search.beam_width, group.ends)
        group.hypotheses.extend(ended)
        if not successors or len(sequence.tokens) + 1 >= group.longest:
            best = beam.finish(successors, group.hypotheses, search.beam_width, search.length_penalty)
            outputs = [_beam_output(group, index, hypothesis) for index, hypothesis in enumerate(best)]
            self.abort(group.request.request_id)
            return outputs
        self._grow_beams(group, successors)
        return []

    def _grow_beams(self, group: Group, successors: list[beam.Successor]) -> None:
        parents = list(group.live)
        living = []
        for successor in successors:
            heir = successor.parent in living  # the first successor continues its parent, others fork from it
            member = self._fork(successor.parent, 0) if heir else successor.parent
            living.append(member)
        for member, successor in zip(living, successors, strict=True):
            member.cumulative_logprob = successor.cumulative_logprob
            member.candidates = []
            member.tokens.append(successor.token)
        for parent in parents:
            if parent not in living:
                self._leave(parent)
        group.live = living

    def _fork(self, parent: Sequence, index: int) -> Sequence:
        """A sibling with the same known tokens that shares every block; written blocks are copied when they are."""
        child = self._sequence(
            parent.group, index, fork_seed(parent.group.request.seed, index), list(parent.tokens), list(parent.keys)
        )
        running = parent in self.running and len(self.running) < self.config.max_num_seqs
        if running:
            child.computed, child.findable = parent.computed, parent.findable
            child.blocks = list(parent.blocks)
            for block in child.blocks:
                self.pool.share(block)
        insort(self.running if running else self.waiting, child, key=_order)
        return child

    # ------------------------------------------------------------------ ends

    @property
    def _capacity(self) -> int:
        return min(self.max_model_len, self.pool.count * self.block_size)

    def _finish_reason(self, sequence: Sequence, token: int, complete: bool) -> FinishReason | None:
        request = sequence.group.request
        if complete:
            return "stop"
        if sequence.output_length > request.params.min_tokens and token in sequence.group.ends:
            return "stop"
        if len(sequence.tokens) >= sequence.group.longest:
            return "length"
        return None

    def _output(
        self, sequence: Sequence, token: int, logprobs: list[Logprobs] | None, reason: FinishReason | None
    ) -> Output:
        group = sequence.group
        first = sequence.output_length == 1 and sequence.index == 0
        end_token = token in group.ends or token in group.request.eos_token_ids
        return Output(
            request_id=group.request.request_id,
            index=sequence.index,
            token_ids=[token],
            logprobs=logprobs,
            finish_reason=reason,
            stop_token_id=token if reason == "stop" and end_token else None,
            prompt_logprobs=group.prompt_logprobs if first and group.prompt_logprobs else None,
            cached_tokens=group.cached_tokens or 0,
        )

    def _fail(self, group: Group, row: RowResult) -> Output:
        request_id = group.request.request_id
        self.abort(request_id)
        return Output(request_id, finish_reason="error", error=row.error, fault=row.fault, param=row.param)

    def _end_sequence(self, sequence: Sequence) -> None:
        self._leave(sequence)
        group = sequence.group
        group.live.remove(sequence)
        if not group.live:
            del self._groups[group.request.request_id]
            if group.cached_tokens is None:
                self._leave_queue(group)

    def _end_group(self, group: Group) -> None:
        if group.cached_tokens is None:
            self._leave_queue(group)
        for sequence in group.live:
            self._leave(sequence)
        group.live.clear()

    def _leave(self, sequence: Sequence) -> None:
        self.swap_space.drop(sequence)
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        self._give_up_blocks(sequence)
        self._forget(sequence)

    def _give_up_blocks(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = sequence.findable = sequence.sent = 0
        sequence.incarnation += 1

    def _forget(self, sequence: Sequence) -> None:
        if sequence.known_to_workers:
            sequence.known_to_workers = False
            self._removed.append(sequence.id)

    def _sequence(self, group: Group, index: int, seed: int, tokens: list[int], keys: list[bytes]) -> Sequence:
        sequence = Sequence(id=self._ids, group=group, index=index, seed=seed, tokens=tokens, keys=keys)
        self._ids += 1
        group.live.append(sequence)
        return sequence


def _in_background(sequence: Sequence) -> bool:
    return sequence.group.request.priority >= BACKGROUND


def _order(sequence: Sequence) -> tuple[float, ...]:
    return (*sequence.group.key, sequence.id)


def _beam_output(group: Group, index: int, hypothesis: Hypothesis) -> Output:
    return Output(
        request_id=group.request.request_id,
        index=index,
        token_ids=hypothesis.tokens,
        finish_reason="length" if hypothesis.stopped_by is None else "stop",
        stop_token_id=hypothesis.stopped_by,
        cached_tokens=group.cached_tokens or 0,
        cumulative_logprob=hypothesis.cumulative_logprob,
    )
