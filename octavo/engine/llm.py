"""LLM: offline inference in this process. A list of prompts in, a list of outputs out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from tqdm import tqdm

from octavo.config import EngineConfig
from octavo.engine.ability import check_scores, pair_up
from octavo.engine.chat_template import ChatTemplate
from octavo.engine.llm_engine import LLMEngine
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import InvalidRequest, RequestFailed
from octavo.request import (
    BeamSearchOutput,
    BeamSearchParams,
    BeamSearchSequence,
    PoolingOutput,
    PoolingParams,
    PoolingRequestOutput,
    PromptType,
    RequestOutput,
    SamplingParams,
    TextPair,
)
from octavo.vectors import cosine, floats

Message = dict[str, Any]
Params = SamplingParams | BeamSearchParams | PoolingParams


class LLM:
    """A loaded model.

        llm = LLM("path/to/model")            # or LLM() for the embedded default
        llm.generate(["One", "Two"], SamplingParams(temperature=0.8, max_tokens=64))

    Keyword arguments are the fields of the configs in `octavo.config` (`octavo serve --help` lists them).
    Raises ConfigError or CheckpointError.
    """

    def __init__(self, model: str | None = None, **arguments: Any) -> None:
        self.llm_engine = LLMEngine(EngineConfig.of(model=model, **arguments))
        self._requests = 0

    def generate(
        self,
        prompts: PromptType | Sequence[PromptType],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Continue each prompt; outputs come in the prompts' order.

        A prompt is text, a list of token ids, or {"prompt_token_ids": [...]}. One SamplingParams serves all, a sequence
        one each. Raises InvalidRequest before anything runs, RequestFailed if a request failed inside.
        """
        batch = _prompts(prompts)
        return self._run(
            batch, _each(sampling_params or self.get_default_sampling_params(), len(batch)), use_tqdm, priority
        )

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or several. Raises InvalidRequest if the model has no chat template."""
        several = messages and not isinstance(messages[0], dict)
        conversations = cast(Sequence[Sequence[Message]], messages if several else [messages])
        template = ChatTemplate(chat_template, self.get_tokenizer()) if chat_template else self._template()
        prompts: list[PromptType] = [
            self.get_tokenizer().encode(
                template.render(
                    list(conversation),
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                    tools=tools,
                    **(chat_template_kwargs or {}),
                ),
                add_special_tokens=False,
            )
            for conversation in conversations
        ]
        params = _each(sampling_params or self.get_default_sampling_params(), len(prompts))
        return self._run(prompts, params, use_tqdm, None)

    def beam_search(
        self, prompts: PromptType | Sequence[PromptType], params: BeamSearchParams, *, use_tqdm: bool = False
    ) -> list[BeamSearchOutput]:
        """The `beam_width` best continuations of each prompt, best first."""
        batch = _prompts(prompts)
        return [
            BeamSearchOutput(
                sequences=[
                    BeamSearchSequence(
                        tokens=[*output.prompt_token_ids, *beam.token_ids],
                        text=beam.text,
                        cum_logprob=beam.cumulative_logprob or 0.0,
                        finish_reason=beam.finish_reason,
                    )
                    for beam in output.outputs
                ]
            )
            for output in self._run(batch, [params] * len(batch), use_tqdm, None)
        ]

    def encode(
        self,
        prompts: PromptType | Sequence[PromptType],
        pooling_params: PoolingParams | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[PoolingRequestOutput]:
        """Pool each prompt's hidden states as the params say. Raises as `generate` does."""
        return self._pool(_prompts(prompts), pooling_params or PoolingParams(), use_tqdm)

    def embed(
        self,
        prompts: PromptType | Sequence[PromptType],
        *,
        pooling_params: PoolingParams | None = None,
        use_tqdm: bool = True,
    ) -> list[PoolingRequestOutput]:
        """A vector of each prompt, in `outputs.embedding`. Raises as `generate` does."""
        return self.encode(prompts, pooling_params or PoolingParams(task="embed"), use_tqdm=use_tqdm)

    def classify(
        self, prompts: PromptType | Sequence[PromptType], *, use_tqdm: bool = True
    ) -> list[PoolingRequestOutput]:
        """What the model's classifier says of each prompt, in `outputs.probs`. Raises as `generate` does."""
        return self.encode(prompts, PoolingParams(task="classify"), use_tqdm=use_tqdm)

    def score(
        self, data_1: str | Sequence[str], data_2: str | Sequence[str], *, use_tqdm: bool = True
    ) -> list[PoolingRequestOutput]:
        """How well texts go together, in `outputs.score`: each of one list with its mate, or one text with each.

        A cross-encoder reads both at once; of another model it is the cosine of their embeddings.
        """
        pairs = pair_up(data_1, data_2)
        if "classify" in self.llm_engine.ability.tasks:
            check_scores(self.llm_engine.ability)
            return self._pool(pairs, PoolingParams(task="classify"), use_tqdm)
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        vectors = dict(zip(texts, self._run_pooling(texts, PoolingParams(), use_tqdm), strict=True))
        return [
            PoolingRequestOutput(
                request_id=vectors[second].request_id,
                outputs=PoolingOutput(data=[cosine(_vector(vectors[first]), _vector(vectors[second]))]),
                prompt_token_ids=vectors[first].prompt_token_ids + vectors[second].prompt_token_ids,
            )
            for first, second in pairs
        ]

    def _pool(
        self, prompts: Sequence[PromptType | TextPair], params: PoolingParams, use_tqdm: bool
    ) -> list[PoolingRequestOutput]:
        return [
            PoolingRequestOutput(
                request_id=output.request_id,
                outputs=PoolingOutput(data=floats(_vector(output))),
                prompt_token_ids=output.prompt_token_ids,
                num_cached_tokens=output.num_cached_tokens,
            )
            for output in self._run_pooling(prompts, params, use_tqdm)
        ]

    def _run_pooling(
        self, prompts: Sequence[PromptType | TextPair], params: PoolingParams, use_tqdm: bool
    ) -> list[RequestOutput]:
        return self._run(prompts, [params] * len(prompts), use_tqdm, None)

    def get_tokenizer(self) -> Tokenizer:
        return self.llm_engine.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config asks for; SamplingParams() where it says nothing."""
        return SamplingParams(**self.llm_engine.default_sampling)

    def get_metrics(self) -> str:
        """The Prometheus text of this engine."""
        return self.llm_engine.metrics.render().decode()

    def sleep(self, level: int = 1) -> None:
        """Free the memory that the model takes, say for a training step; `wake_up` brings it back.

        level 1: a GPU's weights stay in the machine's memory; 2, and on a CPU: they are read again when it wakes.
        Raises ConfigError if the machine's memory is too small for level 1.
        """
        self.llm_engine.sleep(level)

    def wake_up(self) -> None:
        """Go on after `sleep`. Raises ConfigError or CheckpointError if the model does not fit or is gone."""
        self.llm_engine.wake_up()

    def close(self) -> None:
        """Free the model. Happens by itself when the process ends."""
        self.llm_engine.close()

    def _template(self) -> ChatTemplate:
        return ChatTemplate.for_model(self.llm_engine.config.model, self.get_tokenizer())

    def _run(
        self,
        prompts: Sequence[PromptType | TextPair],
        params: Sequence[Params],
        use_tqdm: bool,
        priority: Sequence[int] | None,
    ) -> list[RequestOutput]:
        engine = self.llm_engine
        ids = [str(self._requests + place) for place in range(len(prompts))]
        self._requests += len(prompts)
        levels = priority or [0] * len(prompts)
        try:
            for request_id, prompt, each, level in zip(ids, prompts, params, levels, strict=True):
                engine.add_request(request_id, prompt, each, priority=level, output_kind="final")
            return self._wait(ids, use_tqdm)
        except BaseException:  # Ctrl-C too: a half-run batch must not haunt the next call
            engine.abort_request(ids)
            raise

    def _wait(self, ids: Sequence[str], use_tqdm: bool) -> list[RequestOutput]:
        engine = self.llm_engine
        done: dict[str, RequestOutput] = {}
        tokens = 0
        hidden = None if use_tqdm else True  # None: unless stderr is a terminal
        with tqdm(total=len(ids), desc="Processed prompts", disable=hidden, dynamic_ncols=True) as bar:
            while engine.has_unfinished_requests():
                for output in engine.step():
                    if output.outputs[0].finish_reason == "error":
                        raise RequestFailed(str(output.outputs[0].stop_reason))
                    done[output.request_id] = output
                    tokens += sum(len(each.token_ids) for each in output.outputs)
                    elapsed = bar.format_dict["elapsed"] or 1e-9
                    bar.set_postfix_str(f"output {tokens / elapsed:.1f} tok/s", refresh=False)
                    bar.update()
        return [done[request_id] for request_id in ids]


def _prompts(prompts: PromptType | Sequence[PromptType]) -> list[PromptType]:
    if isinstance(prompts, str | dict) or (prompts and isinstance(prompts[0], int)):
        return [cast(PromptType, prompts)]
    return list(cast(Sequence[PromptType], prompts))


def _vector(output: RequestOutput) -> bytes:
    assert output.pooled is not None
    return output.pooled


def _each(params: SamplingParams | Sequence[SamplingParams], count: int) -> list[SamplingParams]:
    if isinstance(params, SamplingParams):
        return [params] * count
    if len(params) != count:
        raise InvalidRequest(f"{count} prompts, but {len(params)} SamplingParams", param="sampling_params")
    return list(params)
