"""Every operation of /openapi.json, with data that fit it and data that do not."""

import math

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

# Checked against the description of the operation. The servers here have no state that a deletion could take.
CASES = 15
# Tokens of a text, texts of a prompt, and prompts: what it takes to answer more is no part of this test.
FEW = 2
# More are refused.
MOST_TEXTS = 128
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
# Where a request without a length gets all of the context.
ENDLESS = {"/v1/chat/completions": "max_tokens", "/v1/responses": "max_output_tokens"}


@pytest.fixture(scope="module")
def api(tiny):
    return schemathesis.openapi.from_url(tiny.url + "/openapi.json", headers=tiny.headers)


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_every_answer_is_as_described(case, tiny):
    if isinstance(case.body, dict):
        fits = case.meta and case.meta.generation.mode is GenerationMode.POSITIVE
        limit(case.body, ENDLESS.get(case.path, "max_tokens" if fits else None))
    response = case.call(headers=tiny.headers, timeout=300)
    # The description cannot say that one field needs another, so that data which fit it may be refused.
    case.validate_response(response, headers=tiny.headers, excluded_checks=[positive_data_acceptance])


def limit(body, length):
    """Caps what an answer takes. `length` is a field that is set if nothing is said. What is wrong on purpose stays as it is."""
    for field in LENGTHS:
        if is_count(body.get(field)):
            body[field] = FEW
    for field in ("n", "best_of"):
        if is_count(body.get(field), MOST_TEXTS):
            body[field] = min(body[field], FEW)
    if length and body.get(length) is None:
        body[length] = FEW
    prompt = body.get("prompt")
    if isinstance(prompt, list) and (all(isinstance(text, str) for text in prompt) or all(map(is_ids, prompt))):
        body["prompt"] = prompt[:FEW]


def is_count(value, most=math.inf):
    return type(value) is int and 0 <= value <= most


def is_ids(value):
    return isinstance(value, list) and all(type(id) is int and 0 <= id < 1 << 32 for id in value)
