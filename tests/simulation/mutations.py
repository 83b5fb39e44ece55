"""Seeded bugs: small patches of the package, each of which the simulation has to notice.

A patch is applied to a module's source while it is imported, never to a file. One whose old text does not occur just
once is an error: the list follows the code. Imports nothing of octavo, because it has to be there first.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import NamedTuple


class Mutation(NamedTuple):
    name: str
    module: str
    old: str
    new: str

    @property
    def share_of_whole(self) -> float:
        """Of the seeds: only in the whole service does the code of the supervision run."""
        return float(self.module in (_ROSTER, _ENGINE, _SUPERVISOR))

    @property
    def tensors(self) -> bool:
        """Whether the worker has to lay out real batches."""
        return self.module == _BATCH

    def patch(self, source: str) -> str:
        count = source.count(self.old)
        if count != 1:
            raise LookupError(f"mutation {self.name!r}: its text occurs {count} times in {self.module}:\n{self.old}")
        return source.replace(self.old, self.new)


class _Loader(SourceFileLoader):
    def __init__(self, mutation: Mutation, path: str) -> None:
        super().__init__(mutation.module, path)
        self._mutation = mutation

    def get_code(self, fullname: str) -> CodeType:
        """From the patched source, past any cached bytecode."""
        source = self._mutation.patch(self.get_data(self.path).decode())
        return self.source_to_code(source.encode(), self.path)


class _Finder(MetaPathFinder):
    def __init__(self, mutation: Mutation) -> None:
        self._mutation = mutation

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._mutation.module:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = _Loader(self._mutation, spec.origin)
        return spec


def install(mutation: Mutation) -> None:
    """From now on the module is imported with the bug in it."""
    assert mutation.module not in sys.modules, f"{mutation.module} is imported already"
    sys.meta_path.insert(0, _Finder(mutation))


_BLOCKS = "octavo.scheduling.blocks"
_CACHE = "octavo.scheduling.prefix_cache"
_SCHEDULER = "octavo.scheduling.scheduler"
_BEAM = "octavo.scheduling.beam"
_SEQUENCE = "octavo.scheduling.sequence"
_SWAP = "octavo.scheduling.swap"
_PROCESS = "octavo.engine.core_process"
_CORE = "octavo.engine.core"
_OUTPUT = "octavo.engine.output"
_ROSTER = "octavo.engine.roster"
_ENGINE = "octavo.engine.async_engine"
_BATCH = "octavo.execution.batch"
_SUPERVISOR = "octavo.engine.supervisor"

MUTATIONS = [
    Mutation("skip a decref", _BLOCKS, "in reversed(blocks):", "in reversed(blocks[1:]):"),
    Mutation("an owner is not counted", _BLOCKS, "self.references[block] += 1", "self.references[block] |= 1"),
    Mutation("an owned block stays free", _BLOCKS, "            del self._free[block]\n", "            pass\n"),
    Mutation("two owners are not many", _BLOCKS, "self.references[block] > 1", "self.references[block] > 2"),
    Mutation("reuse without telling the cache", _BLOCKS,
             "                self.on_reuse(block)", "                pass"),
    Mutation("evict pinned", _BLOCKS, "if self.references[block] == 0:\n                self._free",
             "if self.references[block] <= 1:\n                self._free"),
    Mutation("hash without parent", _CACHE, "sha256(keys[-1] + array(", "sha256(keys[0] + array("),
    Mutation("hash without the last token", _CACHE, "tokens[end - size : end])", "tokens[end - size : end - 1])"),
    Mutation("hash without salt", _CACHE, "for part in (adapter, salt):", "for part in (adapter,):"),
    Mutation("hash without adapter", _CACHE, "for part in (adapter, salt):", "for part in (salt,):"),
    Mutation("an adapter spells like a salt", _CACHE, 'digest.update(len(text).to_bytes(8, "little") + text)',
             "digest.update(text)"),
    Mutation("found blocks are not owned", _CACHE, "            self._pool.share(block)", "            pass"),
    Mutation("a hole in the prefix", _CACHE, "                break\n", "                continue\n"),
    Mutation("the last block of a key is found", _CACHE, "if key not in self._block_of:", "if key:"),
    Mutation("a lost block is still found", _CACHE, "del self._block_of[self._key_of.pop(block)]",
             "self._key_of.pop(block)"),
    Mutation("a key for the block before", _SCHEDULER, "insert(sequence.keys[logical + 1]",
             "insert(sequence.keys[logical]"),
    Mutation("a prompt found whole", _SCHEDULER,
             "usable = (len(sequence.tokens) - 1)", "usable = len(sequence.tokens)"),
    Mutation("one block too many", _SCHEDULER, "wanted = -(-(sequence.computed + count) // self.block_size)",
             "wanted = (sequence.computed + count) // self.block_size + 1"),
    Mutation("one block too few", _SCHEDULER, "wanted = -(-(sequence.computed + count) // self.block_size)",
             "wanted = -(-(sequence.computed + count - 1) // self.block_size)"),
    Mutation("copy on write skipped", _SCHEDULER, "copy = first < len(sequence.blocks) and",
             "copy = first < len(sequence.blocks) - 1 and"),
    Mutation("copy on write without the copy", _SCHEDULER, "plan.copies.append((shared, own))", "pass"),
    Mutation("copy on write the other way round", _SCHEDULER, "plan.copies.append((shared, own))",
             "plan.copies.append((own, shared))"),
    Mutation("copy on write keeps the shared block", _SCHEDULER, "            self.pool.release([shared])\n", ""),
    Mutation("the worker keeps a stale slot", _SCHEDULER, "sequence.sent = min(sequence.sent, first)", "pass"),
    Mutation("room for the copy is not counted", _SCHEDULER, "if fresh + copy + reserve >", "if fresh + reserve >"),
    Mutation("draw before all is computed", _SCHEDULER, "if last := end == len(sequence.tokens) + sequence.promised:",
             "if last := end >= len(sequence.tokens) + sequence.promised - 1:"),
    Mutation("fork again after each token", _SCHEDULER, "draws = 1 if group.forked else", "draws = 1 if draws else"),
    Mutation("preempted with its blocks", _SCHEDULER,
             "self.running.remove(sequence)\n        self._give_up_blocks(sequence)", "self.running.remove(sequence)"),
    Mutation("preempted without a word to the workers", _SCHEDULER,
             "        self._forget(sequence)\n        insort(", "        insort("),
    Mutation("re-emit after preempt", _SCHEDULER, "        self.preemptions += 1",
             "        self.preemptions += 1\n"
             "        del sequence.tokens[len(sequence.group.request.prompt_token_ids) :]"),
    Mutation("preempted to the end of the line", _SCHEDULER,
             "        insort(self.waiting, sequence, key=_order)\n        self.preemptions",
             "        self.waiting.append(sequence)\n        self.preemptions"),
    Mutation("preempt the first in line", _SCHEDULER, "victim = self.running[-1]", "victim = self.running[0]"),
    Mutation("beams wait for each other for ever", _SCHEDULER,
             "while not parts and self.waiting and self.running and",
             "while not parts and self.waiting and not self.running and"),
    Mutation("who was preempted with nothing promised waits for beams that wait for it", _SCHEDULER,
             "self.running and not self._expects_tokens():", "self.running and not self.under_way:"),
    Mutation("forget abort in waiting", _SCHEDULER,
             "(self.running if sequence in self.running else self.waiting).remove(sequence)",
             "sequence in self.running and self.running.remove(sequence)"),
    Mutation("abort one sequence only", _SCHEDULER,
             "        for sequence in group.live:\n            self._leave(sequence)",
             "        for sequence in group.live[:1]:\n            self._leave(sequence)"),
    Mutation("abort of one sequence ends all", _SCHEDULER, "if index is not None and group.forked:",
             "if index is not None and not group.forked:"),
    Mutation("finished, but its blocks stay", _SCHEDULER,
             "self.waiting).remove(sequence)\n        self._give_up_blocks(sequence)",
             "self.waiting).remove(sequence)"),
    Mutation("freed twice", _SCHEDULER, "        sequence.blocks = []\n        sequence.computed =",
             "        sequence.computed ="),
    Mutation("aborted in the queue and still counted", _SCHEDULER,
             "        if group.cached_tokens is None:\n            self._leave_queue(group)\n        for",
             "        for"),
    Mutation("the queue takes one too many", _SCHEDULER,
             "self._queued_requests >= most", "self._queued_requests > most"),
    Mutation("one token too many", _SCHEDULER, "if len(sequence.tokens) >= sequence.group.longest:",
             "if len(sequence.tokens) > sequence.group.longest:"),
    Mutation("min_tokens off by one", _SCHEDULER, "sequence.output_length > request.params.min_tokens",
             "sequence.output_length >= request.params.min_tokens"),
    Mutation("siblings draw the same numbers", _SCHEDULER, "fork_seed(parent.group.request.seed, index)",
             "parent.group.request.seed"),
    Mutation("siblings share without owning", _SCHEDULER,
             "                self.pool.share(block)", "                pass"),
    Mutation("siblings share one table", _SCHEDULER, "child.blocks = list(parent.blocks)",
             "child.blocks = parent.blocks"),
    Mutation("siblings share one text", _SCHEDULER, "list(parent.tokens)", "parent.tokens"),
    Mutation("siblings above max_num_seqs", _SCHEDULER, "running = parent in self.running and len(self.running) <",
             "running = parent in self.running and 0 <"),
    Mutation("one sequence above max_num_seqs", _SCHEDULER, "len(self.running) < self.config.max_num_seqs:",
             "len(self.running) <= self.config.max_num_seqs:"),
    Mutation("above the budget", _SCHEDULER, "            budget -= count\n        self._crowded",
             "            budget -= 1\n        self._crowded"),
    Mutation("a failed row lets its siblings speak", _SCHEDULER,
             "            if sequence not in group.live:", "            if group.cached_tokens is None:"),
    Mutation("prompt log-probabilities twice after preempt", _SCHEDULER, "group.prompt_logprobs[part.start :] =",
             "group.prompt_logprobs +="),
    Mutation("prompt log-probabilities from the cache", _SCHEDULER,
             "params.prompt_logprobs is not None and not sequence.group.forked:",
             "params.prompt_logprobs is not None and sequence.group.forked:"),
    Mutation("a token after the end that was noticed late", _SCHEDULER, "            if sequence not in group.live:",
             "            if row.error is not None and sequence not in group.live:"),
    Mutation("blocks that are still written are freed twice", _SCHEDULER,
             "        self.pool.release(sequence.blocks)\n        sequence.blocks",
             "        self.pool.release(sequence.blocks * (1 + (sequence.promised > 0)))\n        sequence.blocks"),
    Mutation("found in the blocks of the dead", _SCHEDULER, "if sequence.incarnation == part.incarnation and",
             "if (sequence.incarnation == part.incarnation or not sequence.alive) and"),
    Mutation("what was computed before a preemption is taken for computed after it", _SCHEDULER,
             "if sequence.incarnation == part.incarnation and", "if sequence.known_to_workers and"),
    Mutation("what a failed row left is found", _SCHEDULER, " and sequence.id not in failed:", ":"),
    Mutation("promised twice", _SCHEDULER, "sequence.promised += last", "sequence.promised += 2 * last"),
    Mutation("what was promised before a preemption never comes", _SCHEDULER,
             "sequence.promised -= part.promises",
             "sequence.promised -= part.promises and sequence.incarnation == part.incarnation"),
    Mutation("admitted again before its token is known", _SCHEDULER, "if sequence is None or sequence.promised:",
             "if sequence is None:"),
    Mutation("computed beyond its certain end", _SEQUENCE, "len(self.tokens) + self.promised < group.longest",
             "len(self.tokens) + self.promised <= group.longest"),
    Mutation("ahead of a fork", _SEQUENCE, "request.draws == 1 and", "request.draws and"),
    Mutation("ahead of a choice of beams", _SEQUENCE, "if request.beam is not None or request.pooling",
             "if request.pooling"),
    Mutation("a resumed request starts over", _SCHEDULER, "tokens = [*request.prompt_token_ids, *known.token_ids]",
             "tokens = [*request.prompt_token_ids]"),
    Mutation("resumed siblings draw the same numbers", _SCHEDULER, "seed = fork_seed(request.seed, known.index)",
             "seed = request.seed"),
    Mutation("a swapped block has two owners", _SWAP, "[self._free.pop() for _ in sequence.blocks]",
             "[self._free[-1] for _ in sequence.blocks]"),
    Mutation("one swapped block is forgotten", _SWAP, "sequence.blocks[found:], sequence.swapped[found:]",
             "sequence.blocks[found + 1 :], sequence.swapped[found + 1 :]"),
    Mutation("what is found is fetched instead of what is not", _SWAP,
             "sequence.blocks[found:], sequence.swapped[found:]", "sequence.blocks[found:], sequence.swapped"),
    Mutation("more is said to be swapped than was computed", _SWAP, "sequence.swapped_tokens = sequence.computed",
             "sequence.swapped_tokens = sequence.computed + 1"),
    Mutation("what leaves is told to nobody", _SWAP, "plan.swaps_out.extend(self._leaving)", "pass"),
    Mutation("what leaves without a plan is lost", _SWAP, "            self._leaving += zip(",
             "            self._leaving[:] = zip("),
    Mutation("who left keeps swap space", _SCHEDULER, "        self.swap_space.drop(sequence)\n", ""),
    Mutation("what was fetched is never free again", _SWAP, "        self._free += self._fetched\n", ""),
    Mutation("swapped, and found in the cache of others", _SCHEDULER,
             "sequence.computed = max(sequence.computed, sequence.swapped_tokens)",
             "sequence.computed = sequence.swapped_tokens or sequence.computed"),
    Mutation("a beam too many", _BEAM, "return living[:width], ended", "return living[: width + 1], ended"),
    Mutation("beams that ended are forgotten", _BEAM, "sorted([*ended, *cut]", "sorted([*cut]"),
    Mutation("a dead beam keeps its place", _SCHEDULER, "            if parent not in living:\n",
             "            if parent not in parents:\n"),
    Mutation("a beam forgets what it was worth", _BEAM, "total = beam.cumulative_logprob + logprob", "total = logprob"),
    Mutation("a worker is told of the prompt only", _SEQUENCE, "token_ids=list(self.tokens)",
             "token_ids=list(self.group.request.prompt_token_ids)"),
    Mutation("an abort of one ends all on its way", _PROCESS,
             "core.abort(request_id, index)", "core.abort(request_id)"),
    Mutation("a refusal is not said", _PROCESS, "refused += _add(core, request, compiling)",
             "_add(core, request, compiling)"),
    Mutation("a full queue is the caller's fault", _PROCESS, '"overloaded" if isinstance(error, Overloaded)',
             '"invalid" if isinstance(error, Overloaded)'),
    Mutation("nobody is said to start", _CORE,
             "{group.request.request_id: first.began for group in step.started if group.live}", "{}"),
    Mutation("one who has left is said to start", _CORE, "for group in step.started if group.live}",
             "for group in step.started}"),
    Mutation("who has left still pays", _SEQUENCE, "return self in self.group.live", "return True"),
    Mutation("one step too many under way", _CORE, "while len(self._under_way) <= self._steps_ahead",
             "while len(self._under_way) <= self._steps_ahead + 1"),
    Mutation("a step for those who have ended is left under way", _CORE,
             "return self.scheduler.has_work or bool(self._under_way)", "return self.scheduler.has_work"),
    Mutation("tokens after a stop string", _OUTPUT,
             "if sequence.total.finished:", "if sequence.total.finished is None:"),
    Mutation("held text is lost at the end", _OUTPUT,
             "text += self._detokenizer.finish()", "self._detokenizer.finish()"),
    Mutation("finished with its first sequence", _OUTPUT, "return self._unfinished == 0",
             "return self._unfinished < self.width"),
    Mutation("finished sequences resume", _OUTPUT, "if sequence and not sequence.total.finished", "if sequence"),
    Mutation("one who left is not counted", _OUTPUT,
             "            self._metrics.finish(reason, state.times, state.output_tokens, state.longest_output)",
             "            pass"),
    Mutation("all suspects at once", _ROSTER,
             "                self._on_trial = request_id\n", "                pass\n"),
    Mutation("a suspect that ended is still awaited", _ROSTER,
             "self._ashore.pop(request_id, None)\n        self._acquit(request_id)",
             "self._ashore.pop(request_id, None)"),
    Mutation("refused for one crash", _ROSTER, "_REFUSED = 6", "_REFUSED = 3"),
    Mutation("refused for what others did", _ENGINE, "FOREIGN_KILL if death.foreign_kill else CRASH", "CRASH"),
    Mutation("a new core starts everything over", _ENGINE,
             "state.request if request_id == newcomer else state.resumed()",
             "state.request"),
    Mutation("a new core is told nothing", _ENGINE, "self._loaded.set_result(ready)\n        self._board()",
             "self._loaded.set_result(ready)"),
    Mutation("who is refused is not told", _ENGINE,
             "is not None:\n            mailbox.fail(error)", "is None:\n            pass"),
    Mutation("who leaves is not forgotten", _ENGINE, "            await self.abort(request_id)", "            pass"),
    Mutation("an id used again hears its predecessor", _ENGINE,
             "if request_id in self._leaving:\n                await",
             "if request_id not in self._mailboxes:\n                await"),
    Mutation("the dead are not mourned", _SUPERVISOR,
             "                self._client.mourn(death)", "                pass"),
    Mutation("a core that hangs is left alone", _SUPERVISOR, "if self._silence > self._patience:",
             "if self._silence < 0:"),
    Mutation("a core that works is killed", _SUPERVISOR, "self._announced = self._silence, 0.0, 0.0",
             "self._announced = self._silence, self._silence, 0.0"),
    Mutation("one core that does not load ends it all", _SUPERVISOR, "while unloaded < _MOST_FAILURES:",
             "while unloaded < 1:"),
    Mutation("stale slot on reorder", _BATCH, "[[self._slot[row.sequence_id] for row in rows], :",
             "[[slot for slot, _ in zip(self._slot.values(), rows)], :"),
    Mutation("two sequences in one slot", _BATCH, "= self._free.pop()", "= self._free[-1]"),
    Mutation("a table is written from its beginning", _BATCH, "table[row.first_block : row.first_block + len(",
             "table[: len("),
    Mutation("more sequences forget the tables of the first", _BATCH, "[self._table, np.zeros_like(self._table)]",
             "[np.zeros_like(self._table), np.zeros_like(self._table)]"),
    Mutation("every chunk begins at 0", _BATCH, "query_start[row_T] + start_R[row_T]", "query_start[row_T]"),
]  # fmt: skip
