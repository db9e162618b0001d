"""Text from a model, without PyTorch: many prompts at a time, on the engine of the command line and the server."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import _native


@dataclass(kw_only=True)
class SamplingParams:
    """What to generate and how to choose the tokens; names and meanings are those of vLLM.

    What is None is as the model's ``generation_config.json`` says.
    """

    #: Tokens to generate at most.
    max_tokens: int = 256
    #: Tokens before which nothing ends the text.
    min_tokens: int = 0
    #: 0 takes the most probable token; None is the model's, or 0.8.
    temperature: float | None = None
    #: Choose among so many of the most probable tokens; 0 and -1 are all.
    top_k: int | None = None
    #: Choose among the most probable tokens that together have this probability; None is the model's, or 0.95.
    top_p: float | None = None
    #: Leave out tokens with less than this share of the highest probability.
    min_p: float | None = None
    #: Divides the logits of tokens that are in prompt or text.
    repetition_penalty: float | None = None
    #: Taken off the logits of tokens that are in the text, -2 to 2.
    presence_penalty: float = 0.0
    #: The same, as often as they occur.
    frequency_penalty: float = 0.0
    #: Added to the logits of ids, -100 to 100.
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    #: The same seed gives the same text. None is another one every time.
    seed: int | None = None
    #: Texts for each prompt, with seeds one after the other.
    n: int = 1
    #: Strings that end the text.
    stop: str | Sequence[str] = ()
    #: Ids that end the text, beside the model's own.
    stop_token_ids: Sequence[int] = ()
    #: What ended the text is part of it.
    include_stop_str_in_output: bool = False
    #: The model's own ids that end a text are tokens like any other.
    ignore_eos: bool = False
    #: Special tokens are no part of the text.
    skip_special_tokens: bool = True
    #: Log probabilities: of the token, and of so many of the most probable ones, 0 to 20.
    logprobs: int | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """How likely the model took a token to be, before temperature, penalties and filters."""

    token_id: int
    logprob: float
    #: The most probable tokens with theirs, best first.
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class CompletionOutput:
    """One of the texts for a prompt."""

    #: Which of the ``n`` it is.
    index: int
    text: str
    #: Without the id that ended the text.
    token_ids: list[int]
    #: ``"stop"``, or ``"length"`` for ``max_tokens`` and a context that is full.
    finish_reason: str
    #: The stop string or the id of ``stop_token_ids`` that ended it.
    stop_reason: int | str | None
    logprobs: list[TokenLogprob] | None


@dataclass(frozen=True)
class RequestOutput:
    """What came of a prompt."""

    #: None if ids were given.
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    #: Tokens of the prompt, for the first text, whose keys and values were there from before.
    num_cached_tokens: int


@dataclass(kw_only=True)
class _Wire:
    """Parameters as the Rust part reads them."""

    max_tokens: int
    min_tokens: int
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float
    frequency_penalty: float
    logit_bias: list[tuple[int, float]]
    seed: int
    n: int
    stop: list[str]
    stop_token_ids: list[int]
    include_stop_str_in_output: bool
    ignore_eos: bool
    skip_special_tokens: bool
    logprobs: int | None


def _wire(params: SamplingParams) -> _Wire:
    if params.n < 1:
        raise ValueError(f"n is {params.n}, allowed is 1 or more")
    values = dict(vars(params))
    values["top_k"] = 0 if params.top_k == -1 else params.top_k
    values["logit_bias"] = list(params.logit_bias.items())
    values["seed"] = secrets.randbits(63) if params.seed is None else params.seed % 2**64
    values["stop"] = [params.stop] if isinstance(params.stop, str) else list(params.stop)
    values["stop_token_ids"] = list(params.stop_token_ids)
    return _Wire(**values)


class LLM:
    """A model that writes.

    Args:
        model: a folder in the layout of the Hugging Face hub, dense or packed, or a GGUF file.
        threads: as many as there are physical cores that this process may use.
        memory: bytes for weights: packed ones that are faster expanded are expanded within it.
        max_model_len: tokens of a request at most, prompt and text together.
        max_num_seqs: texts that are generated at a time, at most.
        speculation: draft tokens where they pay; the text is the same without.
        kv_memory: bytes for keys and values.
        kv_dtype, key_sparsity, value_sparsity, window, sinks, rule: how keys and values are kept, as for
            :class:`sparamx.torch.SparseCache`.
        chat_template: a file with a template in place of the model's.

    Any thread may call its methods; the interpreter is released while it works. It does not survive a fork.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        threads: int | None = None,
        memory: int | None = None,
        max_model_len: int | None = None,
        max_num_seqs: int = 64,
        speculation: bool = True,
        kv_memory: int | None = None,
        kv_dtype: str = "bf16",
        key_sparsity: float = 0.0,
        value_sparsity: float = 0.0,
        window: int = 64,
        sinks: int = 0,
        rule: str = "query",
        chat_template: str | os.PathLike[str] | None = None,
    ) -> None:
        self._engine = _native.Engine(
            os.fspath(model),
            threads=threads,
            memory=memory,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            speculation=speculation,
            kv_memory=kv_memory,
            kv_dtype=kv_dtype,
            key_sparsity=key_sparsity,
            value_sparsity=value_sparsity,
            window=window,
            sinks=sinks,
            rule=rule,
            chat_template=None if chat_template is None else os.fspath(chat_template),
        )

    @property
    def max_model_len(self) -> int:
        """Tokens that a request may have, prompt and text together."""
        return self._engine.max_model_len

    @property
    def warnings(self) -> list[str]:
        """What was odd about the model's files."""
        return self._engine.warnings

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text."""
        return self._engine.encode(text, add_special_tokens)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of ids."""
        return self._engine.decode(list(token_ids), skip_special_tokens)

    def generate(
        self,
        prompts: str | Sequence[int] | Sequence[str | Sequence[int]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """Continues one prompt or many, given as texts or as ids; Ctrl-C ends all of them.

        The text of a prompt does not depend on those beside it.

        Raises:
            ValueError: for parameters outside their range, and prompts that do not fit in the context.
        """
        if isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int)):
            prompts = [prompts]  # type: ignore[list-item]
        given: list[str | list[int]] = [prompt if isinstance(prompt, str) else list(prompt) for prompt in prompts]  # type: ignore[arg-type]
        if sampling_params is None:
            sampling_params = SamplingParams()
        if isinstance(sampling_params, SamplingParams):
            sampling_params = [sampling_params] * len(given)
        if len(sampling_params) != len(given):
            raise ValueError(f"{len(given)} prompts and {len(sampling_params)} sampling_params")
        params = [_wire(each) for each in sampling_params]
        if use_tqdm:
            from tqdm import tqdm

            with tqdm(total=sum(each.n for each in params), unit="text") as bar:
                ids, outcomes = self._engine.generate(given, params, bar.update)
        else:
            ids, outcomes = self._engine.generate(given, params, None)
        results, first = [], 0
        for prompt, prompt_ids, each in zip(given, ids, params):
            mine = outcomes[first : first + each.n]
            results.append(
                RequestOutput(
                    prompt=prompt if isinstance(prompt, str) else None,
                    prompt_token_ids=prompt_ids,
                    outputs=[_output(index, outcome) for index, outcome in enumerate(mine)],
                    num_cached_tokens=mine[0][-1],
                )
            )
            first += each.n
        return results

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """Answers one conversation or many, in OpenAI's form, by the model's chat template.

        Raises:
            ValueError: if the model has no chat template, or the template refuses the conversation; else as :meth:`generate`.
        """
        many = [messages] if len(messages) > 0 and isinstance(messages[0], Mapping) else messages
        prompts = [
            self._engine.apply_chat_template(
                json.dumps(list(conversation)),  # type: ignore[arg-type]
                json.dumps(None if tools is None else list(tools)),
                json.dumps(dict(chat_template_kwargs or {})),
                add_generation_prompt and not continue_final_message,
                continue_final_message,
            )
            for conversation in many
        ]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)


def _output(index: int, outcome: tuple[Any, ...]) -> CompletionOutput:
    _, text, ids, reason, stop_reason, logprobs, _ = outcome
    scored = None if logprobs is None else [TokenLogprob(*each) for each in logprobs]
    return CompletionOutput(index, text, ids, reason, stop_reason, scored)
