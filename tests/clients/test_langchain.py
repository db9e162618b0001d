"""LangChain's ChatOpenAI."""

from typing import Literal

import pytest
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field


class Person(BaseModel):
    """A person of the story."""

    name: Literal["Lily", "Tom"]
    age: int = Field(ge=0, le=99)


@tool
def get_time(city: Literal["Paris", "Rome"]) -> str:
    """Get the time in a city."""
    return "noon in " + city


@pytest.fixture(scope="module")
def chat(tiny):
    return ChatOpenAI(
        model="stories", base_url=tiny.url + "/v1", api_key=tiny.key, temperature=0, max_tokens=100, max_retries=0, timeout=120
    )


def test_invoke(chat):
    answer = chat.invoke("Once upon a time")
    assert answer.content and answer.usage_metadata["output_tokens"] > 0
    assert answer.response_metadata["finish_reason"] in ("stop", "length")


def test_stream(chat):
    chunks = list(chat.stream("Once upon a time", stream_usage=True))
    assert len(chunks) > 5
    whole = sum(chunks[1:], chunks[0])
    assert whole.content == chat.invoke("Once upon a time").content
    assert whole.usage_metadata["total_tokens"] > 0


def test_batch(chat):
    one, other = chat.batch(["Once upon a time", "The dog"])
    assert one.content == chat.invoke("Once upon a time").content != other.content


def test_bind_tools(chat):
    bound = chat.bind_tools([get_time], tool_choice="get_time")
    (call,) = bound.invoke("What time is it in Paris?").tool_calls
    assert call["name"] == "get_time" and isinstance(call["args"]["city"], str) and call["id"]
    chunks = list(bound.stream("What time is it in Paris?"))
    (streamed,) = sum(chunks[1:], chunks[0]).tool_calls
    assert (streamed["name"], streamed["args"]) == (call["name"], call["args"])
    assert get_time.invoke(call["args"]) == "noon in " + call["args"]["city"]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(chat, method):
    person = chat.with_structured_output(Person, method=method).invoke("Lily is five years old.")
    assert isinstance(person, Person)


def test_responses(chat):
    answer = chat.model_copy(update={"use_responses_api": True}).invoke("Once upon a time")
    assert answer.text


def test_a_conversation_makes_sense(smol):
    chat = ChatOpenAI(model="smollm2", base_url=smol.url + "/v1", api_key="none", temperature=0, max_tokens=40, timeout=300)
    answer = chat.invoke([("system", "You answer in one short sentence."), ("human", "What is the capital of France?")])
    assert "Paris" in answer.content
