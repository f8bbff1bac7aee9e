"""The server holds to its own description of itself, whatever it is asked: schemathesis over /openapi.json."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from serving import server

from sensorium.serve.hosted import Hosted
from sensorium.serve.limits import Limits

BODIES = [("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("POST", "/v1/embeddings")]
PLAIN = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
]
GOOD, BAD = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
CASES = [*((*one, mode) for one in BODIES for mode in (GOOD, BAD)), *((*one, GOOD) for one in PLAIN)]
KEY = {"Authorization": "Bearer the-key"}
LIMITS = Limits(max_tokens=4, context=512, answers=4, characters=20_000)


@pytest.fixture(scope="module")
def described(model):
    """The description of a server whose answers are short."""
    hosted = Hosted.of("tiny", model, LIMITS)
    with server([hosted], LIMITS, keys=["the-key"]) as running:
        yield schemathesis.openapi.from_url(f"{running.url}/openapi.json")
    hosted.close()


def asked(described, method, path, mode, examples):
    """So many requests of one operation, and every check that there is of each answer but one: that what fits the
    description is taken. Ids that no text has, or options that exclude one another, fit it too."""
    operation = described[path][method]

    @seed(0)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case):
        case.call_and_validate(timeout=20, headers=KEY, excluded_checks=[positive_data_acceptance])

    ask()


def test_all_that_is_described_is_tested(described):
    found = {(one.ok().method.upper(), one.ok().path) for one in described.get_all_operations()}
    assert found == {*BODIES, *PLAIN}


@pytest.mark.parametrize(("method", "path", "mode"), CASES)
def test_what_is_described_is_what_is_answered(described, method, path, mode):
    asked(described, method, path, mode, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path", "mode"), CASES)
def test_what_is_described_is_what_is_answered_to_hundreds(described, method, path, mode):
    asked(described, method, path, mode, 60)
