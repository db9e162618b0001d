"""Calls of tools with the package openai."""

import json

import openai
import pytest

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
TIME = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "Get the time in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
QUESTION = [{"role": "user", "content": "What is the weather in Paris in celsius?"}]
NAMED = {"type": "function", "function": {"name": "get_time"}}


@pytest.fixture(scope="module", params=["tiny", "smol"])
def ask(request):
    """Both models: one whose template takes tools, or not, and one without a template."""
    server = request.getfixturevalue(request.param)
    with openai.OpenAI(base_url=server.url + "/v1", api_key=server.key or "none", max_retries=0, timeout=300) as client:
        yield lambda method="create", **more: getattr(client.chat.completions, method)(
            **{"model": server.model, "messages": QUESTION, "temperature": 0, "max_tokens": 120, **more}
        )


def check(call):
    """The arguments of a call are of its schema."""
    assert call.type == "function" and call.id.startswith("call_")
    arguments = json.loads(call.function.arguments)
    if call.function.name == "get_weather":
        assert set(arguments) == {"city", "unit"} and arguments["unit"] in ("celsius", "fahrenheit")
    else:
        assert call.function.name == "get_time" and arguments["city"] in ("Paris", "Rome")
    return arguments


def test_required_makes_a_call(ask):
    answer = ask(tools=[TIME], tool_choice="required", parallel_tool_calls=False)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls" and not choice.message.content
    (call,) = choice.message.tool_calls
    check(call)


def test_a_named_tool_is_called(ask):
    (choice,) = ask(tools=[WEATHER, TIME], tool_choice=NAMED).choices
    assert choice.finish_reason in ("tool_calls", "stop")
    (call,) = choice.message.tool_calls
    assert call.function.name == "get_time"
    check(call)


def test_none_makes_no_call(ask):
    (choice,) = ask(tools=[WEATHER], tool_choice="none", max_tokens=20).choices
    assert not choice.message.tool_calls


def test_auto_answers(ask):
    (choice,) = ask(tools=[WEATHER], tool_choice="auto", max_tokens=60).choices
    for call in choice.message.tool_calls or []:
        check(call)
    assert choice.message.content or choice.message.tool_calls


def test_a_stream_has_the_call_with_its_index(ask):
    options = {"tools": [WEATHER, TIME], "tool_choice": NAMED}
    whole = ask(**options).choices[0].message.tool_calls[0]
    deltas = [
        delta
        for chunk in ask(stream=True, **options)
        for choice in chunk.choices
        for delta in choice.delta.tool_calls or []
    ]
    assert all(delta.index == 0 for delta in deltas)
    first, *rest = deltas
    assert first.id and first.type == "function" and first.function.name == "get_time"
    assert not any(delta.id or delta.function.name for delta in rest)
    assert "".join(delta.function.arguments or "" for delta in deltas) == whole.function.arguments


def test_the_stream_helper_puts_the_call_together(ask):
    with ask("stream", tools=[WEATHER, TIME], tool_choice=NAMED) as stream:
        stream.until_done()
    (call,) = stream.get_final_completion().choices[0].message.tool_calls
    check(call)


def test_calls_come_with_log_probabilities(ask):
    (choice,) = ask(tools=[TIME], tool_choice="required", logprobs=True, top_logprobs=2).choices
    assert choice.message.tool_calls and choice.logprobs.content


def test_a_result_of_a_tool_is_taken(ask):
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Paris","unit":"celsius"}'}}
    messages = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "12 degrees, rain"},
    ]
    answer = ask(messages=messages, tools=[WEATHER], tool_choice="none", max_tokens=30)
    assert answer.choices[0].message.content


def test_the_arguments_make_sense(smol):
    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
    weather = {"type": "function", "function": {"name": "get_weather", "description": "Get the weather in a city", "parameters": city}}
    with openai.OpenAI(base_url=smol.url + "/v1", api_key="none", max_retries=0, timeout=300) as client:
        answer = client.chat.completions.create(
            model="smollm2", messages=[{"role": "user", "content": "What is the weather in London today?"}], tools=[weather],
            tool_choice="required", parallel_tool_calls=False, temperature=0, max_tokens=60,
        )
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "London"})
