"""A model whose next token is a hash of what it reads through the block table it was given.

It keeps its own block tables and KV content exactly as a worker would, so an aliased, stale, missing or wrongly copied
block changes the tokens it draws. `expected` computes the same function from a request's own tokens alone.
"""

from __future__ import annotations

from hashlib import sha256

from octavo.plan import Logprobs, RowResult, SequenceSpec, StepPlan, StepResult, fork_seed

VOCABULARY = 1000


def next_token(tokens: list[int], seed: int, vocabulary: int = VOCABULARY) -> int:
    digest = sha256(repr((tokens, seed)).encode()).digest()
    return int.from_bytes(digest[:4], "little") % vocabulary


def candidates(tokens: list[int], count: int) -> list[tuple[int, float]]:
    """`count` distinct tokens with falling log-probabilities."""
    first = next_token(tokens, 0)
    step = 1 + next_token(tokens, 1) % 7
    return [((first + i * step) % VOCABULARY, -0.1 * (1 + next_token(tokens, i + 2) % 5 + 6 * i)) for i in range(count)]


class FakeModel:
    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.content: list[list[int | None]] = [[None] * block_size for _ in range(num_blocks)]
        self.specs: dict[int, SequenceSpec] = {}
        self.tables: dict[int, list[int]] = {}

    def run(self, plan: StepPlan) -> StepResult:
        for sequence_id in plan.removed:
            del self.specs[sequence_id], self.tables[sequence_id]
        for spec in plan.added:
            assert spec.sequence_id not in self.specs
            self.specs[spec.sequence_id], self.tables[spec.sequence_id] = spec, []
        for source, destination in plan.copies:
            self.content[destination] = list(self.content[source])
        for row in plan.rows:
            self.tables[row.sequence_id][row.first_block :] = row.block_ids
            for position, token in enumerate(row.token_ids, start=row.start):
                block = self.tables[row.sequence_id][position // self.block_size]
                self.content[block][position % self.block_size] = token
        return StepResult(plan.step, [self._draw(row) for row in plan.rows if row.draws])

    def read(self, sequence_id: int, length: int) -> list[int]:
        table = self.tables[sequence_id]
        tokens = [self.content[table[p // self.block_size]][p % self.block_size] for p in range(length)]
        assert None not in tokens, "read a slot that was never written"
        return tokens  # type: ignore[return-value]

    def _draw(self, row) -> RowResult:
        spec = self.specs[row.sequence_id]
        tokens = self.read(row.sequence_id, row.start + len(row.token_ids))
        if spec.candidates:
            best = candidates(tokens, spec.candidates)
            ids, values = [token for token, _ in best], [value for _, value in best]
            return RowResult(row.sequence_id, ids, [Logprobs(ids, values, list(range(1, len(ids) + 1)))])
        draws = [next_token(tokens, fork_seed(spec.seed, index)) for index in range(row.draws)]
        return RowResult(row.sequence_id, draws)


def expected(prompt: list[int], seed: int, max_tokens: int, end_tokens: list[int]) -> list[int]:
    tokens = list(prompt)
    while len(tokens) - len(prompt) < max_tokens:
        tokens.append(next_token(tokens, seed))
        if tokens[-1] in end_tokens:
            break
    return tokens[len(prompt) :]
