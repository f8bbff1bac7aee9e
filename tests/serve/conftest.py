"""One tiny model for all tests of the server."""

import pytest
from serving import server

from sensorium.api import Model
from sensorium.recipes.llava import llava
from sensorium.serve.hosted import Hosted
from sensorium.serve.limits import Limits
from sensorium.train.build import build_model, tokenizer_of


@pytest.fixture(scope="session")
def model():
    recipe = llava("tiny")
    return Model(recipe, build_model(recipe), tokenizer_of(recipe))


@pytest.fixture(scope="session")
def hosted(model):
    found = Hosted.of("tiny", model, Limits())
    yield found
    found.close()


@pytest.fixture(scope="module")
def served(hosted):
    """A server with a real model, without keys."""
    with server([hosted]) as running:
        yield running
