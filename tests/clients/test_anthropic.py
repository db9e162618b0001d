"""Messages with the package anthropic."""

import anthropic
import pytest

# The package has no field for it.
GREEDY = {"temperature": 0}
STORY = [{"role": "user", "content": "Once upon a time"}]
TIME = {
    "name": "get_time",
    "description": "Get the time in a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def client(tiny):
    with anthropic.Anthropic(base_url=tiny.url, api_key=tiny.key, max_retries=0, timeout=120) as client:
        yield client


def test_a_message(client):
    message = client.messages.create(model="stories", messages=STORY, max_tokens=20, extra_body=GREEDY)
    assert message.type == "message" and message.role == "assistant" and message.stop_reason == "max_tokens"
    (block,) = message.content
    assert block.type == "text" and block.text
    assert message.usage.output_tokens == 20 and message.usage.input_tokens > 0


def test_a_stream(client):
    ask = {"model": "stories", "messages": STORY, "max_tokens": 20, "extra_body": GREEDY}
    whole = client.messages.create(**ask)
    with client.messages.stream(**ask) as stream:
        text = "".join(stream.text_stream)
    assert text == whole.content[0].text
    final = stream.get_final_message()
    assert final.stop_reason == "max_tokens" and final.usage.output_tokens == 20


def test_a_stop_sequence_is_named(client):
    message = client.messages.create(model="stories", messages=STORY, max_tokens=100, extra_body=GREEDY, stop_sequences=["."])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", ".")


def test_tools(client):
    ask = {
        "model": "stories", "messages": STORY, "max_tokens": 100, "extra_body": GREEDY,
        "tools": [TIME], "tool_choice": {"type": "tool", "name": "get_time"},
    }
    message = client.messages.create(**ask)
    assert message.stop_reason == "tool_use"
    (call,) = [block for block in message.content if block.type == "tool_use"]
    assert call.name == "get_time" and call.input["city"] in ("Paris", "Rome")
    with client.messages.stream(**ask) as stream:
        stream.until_done()
    (streamed,) = [block for block in stream.get_final_message().content if block.type == "tool_use"]
    assert streamed.input == call.input
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "noon"}
    again = [
        *STORY,
        {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in message.content]},
        {"role": "user", "content": [result]},
    ]
    answer = client.messages.create(
        model="stories", messages=again, max_tokens=10, tools=[TIME], tool_choice={"type": "none"}, extra_body=GREEDY
    )
    assert answer.content[0].text


def test_tokens_are_counted(client):
    counted = client.messages.count_tokens(model="stories", messages=STORY)
    message = client.messages.create(model="stories", messages=STORY, max_tokens=1)
    assert counted.input_tokens == message.usage.input_tokens


def test_errors_have_their_class(client, tiny):
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(model="another", messages=STORY, max_tokens=1)
    assert caught.value.body["type"] == "error" and caught.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(model="stories", messages=[], max_tokens=1)
    with anthropic.Anthropic(base_url=tiny.url, api_key="sk-wrong", max_retries=0) as wrong:
        with pytest.raises(anthropic.AuthenticationError):
            wrong.messages.create(model="stories", messages=STORY, max_tokens=1)


def test_a_system_prompt_is_followed(smol):
    with anthropic.Anthropic(base_url=smol.url, api_key="none", max_retries=0, timeout=300) as client:
        message = client.messages.create(
            model="smollm2",
            system="You answer in one short sentence.",
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            max_tokens=80,
            extra_body=GREEDY,
        )
    assert "Paris" in message.content[0].text and message.stop_reason == "end_turn"
