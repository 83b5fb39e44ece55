"""What a slow reader finds: everything, in one piece."""

from __future__ import annotations

import asyncio

import pytest

from octavo.engine.mailbox import Mailbox
from octavo.errors import RequestFailed
from octavo.request import CompletionOutput, Logprob, RequestOutput


def output(*parts: CompletionOutput, finished: bool = False) -> RequestOutput:
    return RequestOutput(request_id="r", prompt=None, prompt_token_ids=[1], outputs=list(parts), finished=finished)


def part(index: int, number: int, reason=None) -> CompletionOutput:
    return CompletionOutput(
        index=index,
        text=f"{number},",
        token_ids=[number],
        cumulative_logprob=-float(number),
        logprobs=[{number: Logprob(-1.0)}],
        finish_reason=reason,
        stop_reason="now" if reason else None,
    )


def test_a_thousand_unread_deltas_are_one_with_everything():
    async def play():
        mailbox = Mailbox("delta")
        for number in range(1000):
            mailbox.put(output(part(number % 2, number)))
        mailbox.put(output(part(0, 1000, "stop")))
        mailbox.put(output(part(1, 1001, "length"), finished=True))
        whole = await mailbox.take()
        assert whole.finished
        assert [each.index for each in whole.outputs] == [0, 1]
        for each in whole.outputs:
            assert each.token_ids == [number for number in range(1002) if number % 2 == each.index]
            assert each.text == "".join(f"{number}," for number in each.token_ids)
            assert each.logprobs == [{number: Logprob(-1.0)} for number in each.token_ids]
            assert each.cumulative_logprob == -each.token_ids[-1]
        assert [(each.finish_reason, each.stop_reason) for each in whole.outputs] == [
            ("stop", "now"),
            ("length", "now"),
        ]

    asyncio.run(play())


def test_what_was_read_is_not_said_again():
    async def play():
        mailbox = Mailbox("delta")
        mailbox.put(output(part(0, 1)))
        first = await mailbox.take()
        waiting = asyncio.create_task(mailbox.take())
        await asyncio.sleep(0)
        assert not waiting.done()
        mailbox.put(output(part(0, 2)))
        assert (await waiting).outputs == [part(0, 2)]
        assert first.outputs == [part(0, 1)]

    asyncio.run(play())


def test_the_first_delta_brings_the_prompts_logprobs():
    async def play():
        mailbox = Mailbox("delta")
        first = output(part(0, 1))
        first.prompt_logprobs = [None]
        mailbox.put(first)
        mailbox.put(output(part(0, 2)))
        assert (await mailbox.take()).prompt_logprobs == [None]

    asyncio.run(play())


@pytest.mark.parametrize("kind", ["cumulative", "final"])
def test_of_outputs_that_carry_everything_the_newest_is_kept(kind):
    async def play():
        mailbox = Mailbox(kind)
        for number in range(3):
            mailbox.put(output(part(0, number)))
        assert (await mailbox.take()).outputs == [part(0, 2)]

    asyncio.run(play())


def test_a_failure_comes_after_what_was_said_and_stays():
    async def play():
        mailbox = Mailbox("delta")
        mailbox.put(output(part(0, 1)))
        mailbox.fail(RequestFailed("first"))
        mailbox.fail(RequestFailed("second"))
        assert (await mailbox.take()).outputs == [part(0, 1)]
        for _ in range(2):
            with pytest.raises(RequestFailed, match="first"):
                await mailbox.take()

    asyncio.run(play())
