"""From what a caller hands in to a `Request`: encode, check against the model, resolve every default.

Whatever a caller can get wrong is found here, before anything is queued.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from octavo.checkpoint import Checkpoint
from octavo.checkpoint.checkpoint import SentencePooling
from octavo.config import ModelConfig
from octavo.engine.ability import check_task
from octavo.engine.grammar import grammar_text
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import CheckpointError, ContextTooLong, InvalidRequest
from octavo.plan import Capacity, fork_seed
from octavo.request import BeamSearchParams, PoolingParams, PromptType, Request, SamplingParams, TextPair

_LONGEST_TOKEN = 256  # characters; a text longer than this many per token of context cannot fit
_RECOMMENDED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def default_sampling(config: ModelConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    """Sampling defaults of the model's generation_config, unless --generation-config none. Raises CheckpointError."""
    if config.generation_config == "none":
        return {}
    chosen = {name: value for name in _RECOMMENDED if (value := checkpoint.generation_config.get(name)) is not None}
    try:
        msgspec.convert(chosen, SamplingParams)  # which checks ranges too
    except (msgspec.ValidationError, InvalidRequest) as error:
        raise CheckpointError(
            f"the model recommends sampling that cannot be: {error}; --generation-config none leaves it out"
        ) from None
    return chosen


class InputProcessor:
    """Makes requests for one model."""

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        capacity: Capacity,
        clock: Callable[[], float] = time.monotonic,
        pooling: SentencePooling | None = None,
    ) -> None:
        self._config = config
        self._pooling = pooling or SentencePooling()
        self._clock = clock
        self._tokenizer = tokenizer
        self._capacity = capacity
        self._unseeded = 0

    def encode(self, prompt: PromptType, add_special_tokens: bool = True) -> tuple[str | None, list[int]]:
        """The prompt's text, if it came as text, and its token ids. Raises InvalidRequest or ContextTooLong."""
        if isinstance(prompt, dict):
            if "prompt_token_ids" in prompt:
                return prompt.get("prompt"), self._check_ids(prompt["prompt_token_ids"])
            return self._encode_text(str(prompt.get("prompt", "")), add_special_tokens)
        if isinstance(prompt, str):
            return self._encode_text(prompt, add_special_tokens)
        return None, self._check_ids(prompt)

    def encode_to_pool(
        self, prompt: PromptType | TextPair, truncate: int | None = None, add_special_tokens: bool = True
    ) -> tuple[list[int], int | None]:
        """Token ids of what is to be pooled, and where its second segment begins, if it has one.

        truncate: cut to so many tokens, -1 to the longest that the model takes. Raises InvalidRequest, ContextTooLong.
        """
        longest = self._capacity.max_model_len
        most = None if truncate is None else longest if truncate == -1 else min(truncate, longest)
        if isinstance(prompt, dict):
            prompt = prompt.get("prompt_token_ids") or str(prompt.get("prompt", ""))
        if isinstance(prompt, list):
            return self._check_ids(prompt[:most], room=0), None
        first, second = (prompt, None) if isinstance(prompt, str) else prompt
        for text in (first, second or ""):
            if len(text) > longest * _LONGEST_TOKEN and most is None:
                raise self._too_long(f"more than {len(text) // _LONGEST_TOKEN}", room=0)
        kept = longest * _LONGEST_TOKEN  # characters, of which no more than `longest` tokens are wanted
        ids, segment = self._tokenizer.encode_to_pool(
            first[:kept], None if second is None else second[:kept], most=most, add_special_tokens=add_special_tokens
        )
        return self._check_ids(ids, room=0), segment

    def _encode_text(self, prompt: str, add_special_tokens: bool) -> tuple[str, list[int]]:
        if len(prompt) > self._capacity.max_model_len * _LONGEST_TOKEN:
            raise self._too_long(f"more than {len(prompt) // _LONGEST_TOKEN}")
        return prompt, self._check_ids(self._tokenizer.encode(prompt, add_special_tokens))

    def grammar(self, params: SamplingParams | BeamSearchParams | PoolingParams) -> str | None:
        """The grammar that the output has to follow. Large ones take time. Raises InvalidRequest."""
        outputs = params.structured_outputs if isinstance(params, SamplingParams) else None
        return None if outputs is None else grammar_text(outputs)

    def request(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        params: SamplingParams | BeamSearchParams | PoolingParams,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        grammar: str | None = None,
    ) -> Request:
        """grammar: what `grammar` says of the same parameters. Raises InvalidRequest naming what cannot be served."""
        task = params.task if isinstance(params, PoolingParams) else "generate"
        check_task(self._capacity.ability, task)
        if isinstance(params, PoolingParams):
            return Request(
                request_id=request_id,
                prompt_token_ids=prompt_token_ids,
                params=SamplingParams(max_tokens=1, detokenize=False),
                pooling=self._resolved(params),
                max_tokens=0,
                seed=0,
                arrival=self._clock(),
                priority=priority,
                cache_salt=cache_salt,
            )
        beam = params if isinstance(params, BeamSearchParams) else None
        if beam is not None and beam.beam_width > self._capacity.vocab_size:
            raise InvalidRequest("beam_width is larger than the vocabulary", param="beam_width", code="invalid_value")
        if isinstance(params, BeamSearchParams):
            params = SamplingParams(
                temperature=params.temperature, max_tokens=params.max_tokens, ignore_eos=params.ignore_eos
            )
        self._check_against_model(params)
        if params.structured_outputs is not None:
            assert grammar is not None
            params = msgspec.structs.replace(params, structured_outputs=None)
        room = self._capacity.max_model_len - len(prompt_token_ids)
        return Request(
            request_id=request_id,
            prompt_token_ids=prompt_token_ids,
            params=params,
            max_tokens=min(params.max_tokens or room, room),
            seed=self._seed(params),
            eos_token_ids=[token for token in self._tokenizer.eos_token_ids if token < self._capacity.vocab_size],
            bad_words=self._bad_words(params),
            grammar=grammar,
            arrival=self._clock(),
            priority=priority,
            cache_salt=cache_salt,
            beam=beam,
        )

    def _resolved(self, params: PoolingParams) -> PoolingParams:
        ability, own = self._capacity.ability, self._pooling
        if params.dimensions is not None and params.dimensions > ability.width:
            message = f"dimensions is {params.dimensions}; this model's vectors have {ability.width}"
            raise InvalidRequest(message, param="dimensions", code="integer_above_max_value")
        if params.task == "classify":
            return msgspec.structs.replace(params, pooling="cls", normalize=False)
        return msgspec.structs.replace(
            params,
            pooling=params.pooling or own.pooling or ("mean" if ability.whole_prompts else "last"),
            normalize=next((each for each in (params.normalize, own.normalize) if each is not None), True),
        )

    def _seed(self, params: SamplingParams) -> int:
        if params.seed is not None:
            return params.seed % 2**64
        self._unseeded += 1
        return fork_seed(self._config.seed % 2**64, self._unseeded)

    def _bad_words(self, params: SamplingParams) -> list[list[int]]:
        """A word can appear at the beginning of a text and after a space: forbid both spellings."""
        spellings = [spelling for word in params.bad_words for spelling in (word, " " + word.lstrip())]
        encoded = [self._tokenizer.encode(spelling, add_special_tokens=False) for spelling in spellings]
        width = self._capacity.vocab_size  # what the model cannot say needs no forbidding
        return [ids for place, ids in enumerate(encoded) if ids and max(ids) < width and ids not in encoded[:place]]

    def _check_against_model(self, params: SamplingParams) -> None:
        width, most = self._capacity.vocab_size, self._config.max_logprobs
        if params.allowed_token_ids is not None and params.min_tokens:
            ends = {*params.stop_token_ids, *([] if params.ignore_eos else self._tokenizer.eos_token_ids)}
            if ends.issuperset(params.allowed_token_ids):
                message = "with min_tokens, allowed_token_ids needs a token that does not end the output"
                raise InvalidRequest(message, param="allowed_token_ids", code="invalid_value")
        for name, ids in (
            ("logit_bias", params.logit_bias or ()),
            ("allowed_token_ids", params.allowed_token_ids or ()),
            ("stop_token_ids", params.stop_token_ids),
        ):
            if max(ids, default=0) >= width:
                message = f"{name} has token id {max(ids)}; this model's ids are below {width}"
                raise InvalidRequest(message, param=name, code="invalid_value")
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(params, name)
            if count is not None and most != -1 and not 0 <= count <= most:
                raise InvalidRequest(
                    f"{name} is {count}, this server gives 0 to {most}", param=name, code="integer_above_max_value"
                )

    def _check_ids(self, ids: Sequence[int], room: int = 1) -> list[int]:
        """room: tokens of output that must fit."""
        width = self._capacity.vocab_size
        if not ids:
            raise InvalidRequest("the prompt is empty", param="prompt", code="invalid_value")
        if len(ids) + room > self._capacity.max_model_len:
            raise self._too_long(str(len(ids)), room)
        for token_id in ids:
            if type(token_id) is not int or not 0 <= token_id < width:
                message = f"the prompt has a token id that is not a whole number from 0 to {width - 1}"
                raise InvalidRequest(message, param="prompt", code="invalid_value")
        return list(ids)

    def _too_long(self, tokens: str, room: int = 1) -> ContextTooLong:
        output, advice = (", output included", "") if room else ("", ", or let truncate_prompt_tokens cut it")
        return ContextTooLong(
            f"This model's maximum context length is {self._capacity.max_model_len} tokens{output}; "
            f"the prompt has {tokens}. Shorten it{advice}.",
            param="prompt",
        )
