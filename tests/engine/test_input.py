"""What a caller can get wrong is found before anything is queued; what a tokenizer can is kept from the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.checkpoint import Checkpoint
from octavo.config import ModelConfig
from octavo.engine.input import InputProcessor, default_sampling
from octavo.errors import CheckpointError, ContextTooLong, InvalidRequest
from octavo.plan import Capacity
from octavo.request import BeamSearchParams, SamplingParams

CAPACITY = Capacity(num_blocks=8, block_size=4, max_model_len=20, vocab_size=100)


class Letters:
    """A token per letter; its vocabulary is larger than the model's."""

    eos_token_ids = (99, 120)

    def encode(self, text, add_special_tokens=True):
        return [ord(letter) for letter in text]


@pytest.fixture
def inputs() -> InputProcessor:
    return InputProcessor(ModelConfig(), Letters(), CAPACITY)


def test_prompts_come_as_text_ids_or_a_mapping(inputs):
    assert inputs.encode("AB") == ("AB", [65, 66])
    assert inputs.encode([65, 66]) == (None, [65, 66])
    assert inputs.encode({"prompt": "AB"}) == ("AB", [65, 66])
    assert inputs.encode({"prompt_token_ids": [1], "prompt": "x"}) == ("x", [1])


@pytest.mark.parametrize("prompt", ["", [], {"prompt": ""}, [100], [-1], [True], "a~", [2**70]])
def test_prompts_the_model_cannot_read_are_refused(prompt, inputs):
    with pytest.raises(InvalidRequest) as caught:
        inputs.encode(prompt)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("prompt", ["A" * 20, [1] * 20, "A" * 100_000])
def test_prompts_without_room_for_output_are_too_long(prompt, inputs):
    with pytest.raises(ContextTooLong):
        inputs.encode(prompt)


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"logit_bias": {100: 1.0}}, "logit_bias"),
        ({"allowed_token_ids": [1, 100]}, "allowed_token_ids"),
        ({"stop_token_ids": [100]}, "stop_token_ids"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"allowed_token_ids": [99], "min_tokens": 1}, "allowed_token_ids"),
    ],
)
def test_parameters_the_model_cannot_serve_are_named(params, name, inputs):
    with pytest.raises(InvalidRequest) as caught:
        inputs.request("r", [1], SamplingParams(**params))
    assert caught.value.param == name


def test_beams_need_as_many_tokens_to_choose_from(inputs):
    with pytest.raises(InvalidRequest):
        inputs.request("r", [1], BeamSearchParams(beam_width=101, max_tokens=2))


def test_ids_beyond_the_logits_never_reach_the_sampler(inputs):
    request = inputs.request("r", [1], SamplingParams(bad_words=["A", "z"]))
    assert request.bad_words == [[65], [32, 65]]
    assert request.eos_token_ids == [99]


@pytest.mark.parametrize(("asked", "given"), [(None, 15), (3, 3), (1000, 15)])
def test_max_tokens_is_cut_to_the_context(asked, given, inputs):
    assert inputs.request("r", [1] * 5, SamplingParams(max_tokens=asked)).max_tokens == given


def test_seeds_are_kept_and_made(inputs):
    asked = inputs.request("r", [1], SamplingParams(seed=-5)).seed
    assert asked == 2**64 - 5
    made = [inputs.request("r", [1], SamplingParams(seed=seed)).seed for seed in (None, None, -1)]
    assert len(set(made)) == 3
    again = InputProcessor(ModelConfig(), Letters(), CAPACITY)
    assert again.request("r", [1], SamplingParams()).seed == made[0]


def letters(**generation_config: object) -> Checkpoint:
    return Checkpoint(
        name="x", path=Path("x"), format="dummy", config={"model_type": "x"}, generation_config=generation_config
    )


def test_the_models_recommendation_is_the_default_unless_it_is_declined():
    checkpoint = letters(temperature=0.6, top_p=None, top_k=20, do_sample=True, eos_token_id=[1, 2])
    assert default_sampling(ModelConfig(), checkpoint) == {"temperature": 0.6, "top_k": 20}
    assert default_sampling(ModelConfig(generation_config="none"), checkpoint) == {}


@pytest.mark.parametrize("wrong", [{"temperature": "hot"}, {"top_p": 2}, {"top_k": 1.5}, {"temperature": -1}])
def test_a_recommendation_that_cannot_be_is_the_checkpoints_fault(wrong):
    with pytest.raises(CheckpointError, match=f"{next(iter(wrong))}.*--generation-config none"):
        default_sampling(ModelConfig(), letters(**wrong))
    assert default_sampling(ModelConfig(generation_config="none"), letters(**wrong)) == {}
