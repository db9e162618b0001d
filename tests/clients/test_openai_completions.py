"""Completions, models, responses and errors with the package openai."""

import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

PROMPT = "Once upon a time"
# No text ends before its tokens do.
WHOLE = {"ignore_eos": True}
# A guard against hangs only.
START_SECONDS = 120


@pytest.fixture(scope="module")
def client(tiny):
    with openai.OpenAI(base_url=tiny.url + "/v1", api_key=tiny.key, max_retries=0, timeout=120) as client:
        yield client


def test_a_text_goes_on(client):
    ask = {"model": "stories", "prompt": PROMPT, "temperature": 0, "max_tokens": 20, "extra_body": WHOLE}
    whole = client.completions.create(**ask)
    assert whole.object == "text_completion" and whole.choices[0].finish_reason == "length"
    chunks = client.completions.create(stream=True, **ask)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text != ""
    echoed = client.completions.create(echo=True, **ask)
    assert echoed.choices[0].text == PROMPT + whole.choices[0].text


def test_many_prompts_are_answered_in_order(client):
    prompts = [PROMPT, "The dog", "A big"]
    ask = {"model": "stories", "temperature": 0, "max_tokens": 8}
    together = client.completions.create(prompt=prompts, n=2, **ask)
    assert [choice.index for choice in together.choices] == list(range(6))
    alone = [client.completions.create(prompt=prompt, **ask).choices[0].text for prompt in prompts]
    assert [choice.text for choice in together.choices] == [text for text in alone for _ in range(2)]


def test_sixteen_tokens_unless_asked(client):
    answer = client.completions.create(model="stories", prompt=PROMPT, temperature=0, extra_body=WHOLE)
    assert answer.usage.completion_tokens == 16


def test_log_probabilities_of_the_prompt(client):
    answer = client.completions.create(model="stories", prompt=PROMPT, temperature=0, max_tokens=1, echo=True, logprobs=1)
    found = answer.choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == answer.usage.prompt_tokens + 1
    assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
    for token, value, top in list(zip(found.tokens, found.token_logprobs, found.top_logprobs))[1:]:
        assert top[token] >= value and max(top.values()) >= value and len(top) in (1, 2)


def test_models_are_listed_and_found_under_both_names(client):
    listed = {model.id: model for model in client.models.list()}
    assert set(listed) >= {"org/stories"}
    # The slash becomes %2F.
    model = client.models.retrieve("org/stories")
    assert (model.id, model.object, model.owned_by) == ("org/stories", "model", "sparamx")
    assert model.max_model_len > 100
    assert client.models.retrieve("stories").max_model_len == model.max_model_len
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "error, status, change",
    [
        (openai.NotFoundError, 404, {"model": "gpt-5"}),
        (openai.BadRequestError, 400, {"temperature": -1}),
        (openai.BadRequestError, 400, {"max_tokens": 10**9}),
        (openai.BadRequestError, 400, {"messages": []}),
        (openai.BadRequestError, 400, {"top_logprobs": 2}),
        (openai.BadRequestError, 400, {"logit_bias": {"99999999": 1}}),
        (openai.BadRequestError, 400, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
    ],
)
def test_errors_have_their_class_also_in_streams(client, error, status, change, stream):
    ask = {"model": "stories", "messages": [{"role": "user", "content": PROMPT}], "stream": stream, "max_tokens": 4} | change
    with pytest.raises(error) as caught:
        client.chat.completions.create(**ask)
    assert caught.value.status_code == status
    assert caught.value.body["message"] and caught.value.type


def test_a_prompt_that_is_too_long_is_said_to_be(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="stories", messages=[{"role": "user", "content": "The cat sat. " * 3000}])
    assert caught.value.code == "context_length_exceeded"
    assert "maximum context length is" in caught.value.message


def test_keys_are_checked(tiny):
    with openai.OpenAI(base_url=tiny.url + "/v1", api_key="sk-wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            client.models.list()


def test_a_gone_client_stops_its_request(client, tiny):
    """In a stream and without one; the metrics say so."""
    before = tiny.aborts()
    stream = client.completions.create(
        model="stories", prompt=PROMPT, max_tokens=400, stream=True, extra_body={"ignore_eos": True, "n": 8}, temperature=1
    )
    next(stream)
    stream.close()
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.05).completions.create(
            model="stories", prompt=PROMPT, max_tokens=400, n=64, extra_body={"ignore_eos": True}
        )
    tiny.rest(aborts=before)


def at_once(count, ask):
    """The results of so many calls that begin together. What one of them raises is raised here."""
    begin = threading.Barrier(count)

    def one():
        begin.wait(START_SECONDS)
        return ask()

    with ThreadPoolExecutor(count) as pool:
        calls = [pool.submit(one) for _ in range(count)]
    return [call.result() for call in calls]


def test_a_full_queue_is_waited_for(narrow):
    """429 with Retry-After: a client without retries sees it, one with retries gets its answer."""
    seen = []
    transport = openai.DefaultHttpxClient(event_hooks={"response": [lambda r: seen.append((r.status_code, r.headers.get("retry-after")))]})
    ask = {"model": "narrow", "prompt": PROMPT, "max_tokens": 300, "temperature": 0, "extra_body": {"ignore_eos": True}}
    url = narrow.url + "/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as hasty:

        def without():
            try:
                return hasty.completions.create(**ask).choices[0].text
            except openai.RateLimitError as error:
                return error

        # On a machine that starts threads slowly, one request may end before the next comes.
        for _ in range(10):
            answers = at_once(8, without)
            texts = [answer for answer in answers if isinstance(answer, str)]
            refused = [answer for answer in answers if isinstance(answer, openai.RateLimitError)]
            assert len(texts) >= 1 and len(texts) + len(refused) == 8
            if refused:
                break
    assert refused
    assert all(int(error.response.headers["retry-after"]) >= 1 for error in refused)
    with openai.OpenAI(base_url=url, api_key="none", max_retries=20, http_client=transport, timeout=120) as patient:
        with_retries = at_once(4, lambda: patient.completions.create(**ask).choices[0].text)
    assert with_retries == [texts[0]] * 4
    assert {status for status, _ in seen} <= {200, 429}


def test_responses(client):
    ask = {"model": "stories", "input": PROMPT, "temperature": 0, "max_output_tokens": 20, "extra_body": WHOLE}
    answer = client.responses.create(**ask)
    assert answer.object == "response" and answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output_text and answer.usage.output_tokens == 20
    events = list(client.responses.create(stream=True, **ask))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created" and events[-1].type == "response.incomplete"
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == answer.output_text
    with client.responses.stream(model="stories", input=PROMPT, temperature=0, max_output_tokens=20) as stream:
        for _ in stream:
            pass
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model="stories", input=PROMPT, previous_response_id="resp_1")


def test_responses_with_tools(client):
    tool = {
        "type": "function",
        "name": "get_time",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    }
    answer = client.responses.create(
        model="stories", input=PROMPT, tools=[tool], tool_choice="required", temperature=0, max_output_tokens=100,
        parallel_tool_calls=False,
    )
    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert call.name == "get_time" and call.arguments.replace(" ", "") in ('{"city":"Paris"}', '{"city":"Rome"}')
    again = client.responses.create(
        model="stories",
        input=[
            {"role": "user", "content": PROMPT},
            {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
            {"type": "function_call_output", "call_id": call.call_id, "output": "noon"},
        ],
        tools=[tool],
        tool_choice="none",
        temperature=0,
        max_output_tokens=10,
    )
    assert again.output_text
