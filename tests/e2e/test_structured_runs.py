"""A real model under grammars: valid whenever it finished, and the same bytes whatever runs beside it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from octavo import LLM, SamplingParams
from octavo.request import StructuredOutputs

sys.path.append(str(Path(__file__).parent.parent))

from grammars.check import complaint
from grammars.random_schemas import random_schema

PROMPT = "Here is an example of our data:\n"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "blue"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
WISHES = [
    {"json": PERSON},
    {"regex": "[A-Z][a-z]{2,9} (is|was) [0-9]{1,3}"},
    {"choice": ["yes", "no", "perhaps"]},
    {"grammar": 'root ::= "[" item ("," item){1,3} "]"\nitem ::= [a-z] [0-9]+'},
    {"json": PERSON, "disable_any_whitespace": True},
]
SCHEDULES = {
    "batched": {},
    "chunks of 3 tokens": {"max_num_batched_tokens": 3},
    "preempted": {"block_size": 4, "num_gpu_blocks_override": 20, "max_model_len": 64},
    "few at once": {"max_num_seqs": 3, "enable_prefix_caching": False},
    "worker process": {"distributed_executor_backend": "mp"},
}


def make(path, **arguments) -> LLM:
    return LLM(str(path), **{"dtype": "float32", "max_model_len": 256, **arguments})


def params(wish, place, **fields) -> SamplingParams:
    return SamplingParams(seed=place, max_tokens=40, n=2, structured_outputs=StructuredOutputs(**wish), **fields)


def said(output):
    return [(part.text, part.token_ids, part.finish_reason) for part in output.outputs]


@pytest.fixture(scope="module")
def alone(smollm2):
    llm = make(smollm2.path)
    return [said(llm.generate(PROMPT, params(wish, place))[0]) for place, wish in enumerate(WISHES)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_gives_the_bytes_of_each_request_alone(schedule, smollm2, alone):
    llm = make(smollm2.path, **SCHEDULES[schedule])
    free = SamplingParams(seed=9, max_tokens=30, ignore_eos=True)  # who has no grammar runs among them
    wishes = [params(wish, place) for place, wish in enumerate(WISHES)]
    outputs = llm.generate([PROMPT] * (len(wishes) + 1), [*wishes, free], use_tqdm=False)
    assert [said(output) for output in outputs[:-1]] == alone
    assert (llm.llm_engine._core.scheduler.preemptions > 0) == (schedule == "preempted")
    llm.close()


def test_what_finished_is_what_was_asked_for(alone):
    [(person, _, reason), _] = alone[0]
    assert reason == "stop"
    assert complaint(PERSON, person) is None
    assert alone[2][0][0] in ("yes", "no", "perhaps")
    assert all(" " not in text and "\n" not in text for text, _, _ in alone[4] if '" ' not in text)


def test_pieces_are_the_whole(smollm2, alone):
    engine = make(smollm2.path).llm_engine
    for place, wish in enumerate(WISHES):
        engine.add_request(str(place), PROMPT, params(wish, place), output_kind="delta")
    texts = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            for part in output.outputs:
                who = (int(output.request_id), part.index)
                texts[who] = texts.get(who, "") + part.text
    assert texts == {(place, index): each[0] for place, parts in enumerate(alone) for index, each in enumerate(parts)}


def test_answers_to_random_schemas_are_valid(smollm2):
    llm = make(smollm2.path, dtype="auto")
    schemas = [random_schema(seed) for seed in range(2000, 2012)]
    wishes = [
        SamplingParams(seed=1, max_tokens=100, structured_outputs=StructuredOutputs(json=each)) for each in schemas
    ]
    outputs = llm.generate([PROMPT] * len(schemas), wishes, use_tqdm=False)
    finished = [(schema, output.outputs[0].text) for schema, output in zip(schemas, outputs, strict=True)
                if output.outputs[0].finish_reason == "stop"]  # fmt: skip
    assert len(finished) > len(schemas) // 2
    assert [complaint(schema, text) for schema, text in finished] == [None] * len(finished)


def test_the_checker_of_answers_sees_what_is_wrong():
    assert complaint(PERSON, '{"name": "x", "age": 1, "tags": []}') is None
    assert complaint(PERSON, '{"name": "x", "age": 1}') is not None
    assert complaint(PERSON, '{"name": "x"') is not None
    formats = [
        ("date", "0000-02-29", "2023-02-29"),
        ("date", "9999-12-31", "9999-12-32"),
        ("time", "10:00:60-23:59", "10:00:00"),
        ("date-time", "2023-01-31t10:00:00z", "2023-01-31 10:00:00Z"),
    ]
    for form, good, bad in formats:
        assert complaint({"type": "string", "format": form}, json.dumps(good)) is None
        assert complaint({"type": "string", "format": form}, json.dumps(bad)) is not None
