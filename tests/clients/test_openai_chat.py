"""Chat completions with the package openai."""

import json
from typing import Literal

import openai
import pytest
from pydantic import BaseModel, Field

# No text ends before its tokens do.
WHOLE = {"ignore_eos": True}
GREEDY = {"temperature": 0, "max_tokens": 24, "extra_body": WHOLE}
STORY = [{"role": "user", "content": "Once upon a time, there was a little girl named Lily."}]


@pytest.fixture(scope="module")
def client(tiny):
    with openai.OpenAI(base_url=tiny.url + "/v1", api_key=tiny.key, max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def smart(smol):
    with openai.OpenAI(base_url=smol.url + "/v1", api_key="none", max_retries=0, timeout=300) as client:
        yield client


def test_an_answer_has_text_usage_and_a_reason(client):
    answer = client.chat.completions.create(model="stories", messages=STORY, **GREEDY)
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert answer.model == "org/stories"
    (choice,) = answer.choices
    assert choice.finish_reason == "length" and choice.index == 0 and choice.logprobs is None
    assert choice.message.role == "assistant" and choice.message.content.strip()
    usage = answer.usage
    assert usage.completion_tokens == 24 and usage.prompt_tokens > 5
    assert usage.total_tokens == usage.prompt_tokens + 24
    assert usage.prompt_tokens_details.cached_tokens >= 0
    assert answer.system_fingerprint


def test_a_stream_is_the_answer_in_pieces(client):
    whole = client.chat.completions.create(model="stories", messages=STORY, **GREEDY)
    chunks = list(
        client.chat.completions.create(
            model="stories", messages=STORY, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
    )
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    first, *middle, last = chunks
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert last.choices == [] and last.usage == whole.usage.model_copy(
        update={"prompt_tokens_details": last.usage.prompt_tokens_details}
    )
    assert all(chunk.usage is None for chunk in chunks[:-1])
    text = "".join(chunk.choices[0].delta.content or "" for chunk in middle)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in middle][-1] == "length"
    assert all(c.choices[0].finish_reason is None for c in middle[:-1])


def test_the_stream_helper_puts_the_answer_together(client):
    with client.chat.completions.stream(model="stories", messages=STORY, temperature=0, stop=".") as stream:
        deltas = "".join(event.delta for event in stream if event.type == "content.delta")
    final = stream.get_final_completion()
    assert final.choices[0].message.content == deltas != ""


def test_n_answers_differ_and_a_seed_repeats_them(client):
    def ask():
        answer = client.chat.completions.create(
            model="stories", messages=STORY, n=3, seed=7, temperature=1, max_tokens=24, extra_body=WHOLE
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert answer.usage.completion_tokens == 3 * 24
        return [choice.message.content for choice in answer.choices]

    texts = ask()
    assert len(set(texts)) == 3
    assert ask() == texts


def test_a_stop_string_ends_the_text_and_is_not_in_it(client):
    ask = {"model": "stories", "messages": STORY, "temperature": 0, "max_tokens": 100}
    stopped = client.chat.completions.create(stop=["."], **ask)
    assert stopped.choices[0].finish_reason == "stop"
    text = stopped.choices[0].message.content
    assert text and "." not in text
    chunks = client.chat.completions.create(stop=".", stream=True, **ask)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_belong_to_the_text(client, stream):
    ask = {"model": "stories", "messages": STORY, "logprobs": True, "top_logprobs": 3, **GREEDY}
    answer = client.chat.completions.create(stream=stream, **ask)
    if stream:
        choices = [chunk.choices[0] for chunk in answer]
        text = "".join(choice.delta.content or "" for choice in choices)
        tokens = [token for choice in choices if choice.logprobs for token in choice.logprobs.content or []]
    else:
        text = answer.choices[0].message.content
        tokens = answer.choices[0].logprobs.content
    assert len(tokens) == 24
    assert b"".join(bytes(token.bytes) for token in tokens).decode().strip() == text.strip()
    for token in tokens:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        # Greedy: the token is the first of the most probable.
        assert token.top_logprobs[0].logprob == token.logprob
        assert token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob


def test_log_probabilities_without_alternatives(client):
    answer = client.chat.completions.create(model="stories", messages=STORY, logprobs=True, **GREEDY)
    assert all(token.top_logprobs == [] for token in answer.choices[0].logprobs.content)


def test_penalties_and_bias_have_an_effect(client):
    ask = {"model": "stories", "messages": STORY, "temperature": 0, "max_tokens": 60}
    plain = client.chat.completions.create(logprobs=True, **ask)
    for field in ("frequency_penalty", "presence_penalty"):
        other = client.chat.completions.create(**{field: 2.0}, **ask)
        assert other.choices[0].message.content != plain.choices[0].message.content, field
    token = plain.choices[0].logprobs.content[0].token
    (id,) = client.post("/../tokenize", body={"prompt": token, "add_special_tokens": False}, cast_to=dict)["tokens"][-1:]
    banned = client.chat.completions.create(logit_bias={str(id): -100}, logprobs=True, **ask)
    assert banned.choices[0].logprobs.content[0].token != token


class Person(BaseModel):
    """All fields have bounds: in a free text or number a model of stories may ramble until the tokens end."""

    name: Literal["Lily", "Tom"]
    age: int = Field(ge=0, le=99)
    mood: Literal["happy", "sad"]


def test_the_model_that_ships_keeps_to_a_schema(client):
    answer = client.chat.completions.parse(model="stories", messages=STORY, response_format=Person, temperature=0, max_tokens=200)
    person = answer.choices[0].message.parsed
    assert person.mood in ("happy", "sad") and isinstance(person.age, int)
    with client.chat.completions.stream(
        model="stories", messages=STORY, response_format=Person, temperature=0, max_tokens=200
    ) as stream:
        stream.until_done()
    assert stream.get_final_completion().choices[0].message.parsed == person


def test_json_without_a_schema(client):
    answer = client.chat.completions.create(
        model="stories", messages=STORY, response_format={"type": "json_object"}, temperature=0, max_tokens=300,
        extra_body={"ignore_eos": False},
    )
    choice = answer.choices[0]
    # A model of stories may ramble in a string until the tokens end.
    assert choice.message.content.lstrip().startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)


def test_structured_outputs_of_vllm(client):
    def ask(**outputs):
        answer = client.chat.completions.create(
            model="stories", messages=STORY, temperature=0, max_tokens=40, extra_body={"structured_outputs": outputs}
        )
        return answer.choices[0].message.content

    assert ask(choice=["yes", "no"]) in ("yes", "no")
    year = ask(regex="(19|20)[0-9]{2}")
    assert len(year) == 4 and year[:2] in ("19", "20") and year.isdigit()


def test_a_question_with_a_known_answer(smart):
    answer = smart.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}],
        temperature=0,
        max_tokens=80,
    )
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"


class City(BaseModel):
    city: str
    country: str


def test_an_answer_by_a_schema_makes_sense(smart):
    answer = smart.chat.completions.parse(
        model="smollm2",
        messages=[
            {"role": "system", "content": "Answer with JSON that has the fields city and country."},
            {"role": "user", "content": "What is the capital of France, and in which country is it?"},
        ],
        response_format=City,
        temperature=0,
        max_tokens=60,
    )
    parsed = answer.choices[0].message.parsed
    assert (parsed.city.title(), parsed.country.title()) == ("Paris", "France")


def test_a_conversation_is_remembered(smart):
    messages = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "The capital of France is Paris."},
        {"role": "user", "content": "And of Italy?"},
    ]
    answer = smart.chat.completions.create(model="smollm2", messages=messages, temperature=0, max_tokens=30)
    assert "Rome" in answer.choices[0].message.content
