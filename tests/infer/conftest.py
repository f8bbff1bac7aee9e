"""Fixtures over tests/tiny_fused.py."""

from types import SimpleNamespace

import pytest
from tiny_fused import Picture, ask, make, renderer_of

from sensorium.infer.engine import Engine


@pytest.fixture(scope="session")
def tiny():
    model = make()
    renderer = renderer_of(model)
    return SimpleNamespace(model=model, renderer=renderer, engine=Engine(model, renderer), ask=ask, Picture=Picture)


@pytest.fixture
def build():
    """build(**changes of the model's value) -> (model, renderer)."""

    def build(**changes):
        model = make(**changes)
        return model, renderer_of(model)

    return build
