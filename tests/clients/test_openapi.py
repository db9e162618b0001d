"""Every operation of /openapi.json, with data that fit it and data that do not."""

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

# Checked against the description of the operation. The servers here have no state that a deletion could take.
CASES = 15


@pytest.fixture(scope="module")
def api(tiny):
    return schemathesis.openapi.from_url(tiny.url + "/openapi.json", headers=tiny.headers)


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_every_answer_is_as_described(case, tiny):
    if isinstance(case.body, dict) and case.meta and case.meta.generation.mode is GenerationMode.POSITIVE:
        # What it would take to answer is no part of this test.
        limit(case.body)
    response = case.call(headers=tiny.headers, timeout=120)
    # The description cannot say that one field needs another, so that data which fit it may be refused.
    case.validate_response(response, headers=tiny.headers, excluded_checks=[positive_data_acceptance])


def limit(body):
    for field in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        if field in body or field == "max_tokens":
            body[field] = 2
