"""Typed values: JSON and back, type tags, overrides, and errors that name what is near."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from sensorium.config import MOVED, Config, from_json, lookup, override, owned
from sensorium.connectors.base import Connector
from sensorium.connectors.mlp import MLP
from sensorium.connectors.pool import AveragePool
from sensorium.errors import UserError, nearest
from sensorium.recipes.catalog import SIZES, catalog, find
from sensorium.template import Template
from sensorium.train.recipe import Recipe

ROOT = Path(__file__).parents[1]


class Wheel(Config):
    size: float = Field(1.0, gt=0)


class Spoked(Wheel):
    spokes: int = 8


class Stop(Config):
    name: str
    minutes: int = 1


class Bike(Config):
    wheels: tuple[Wheel, ...] = (Wheel(), Spoked())
    bags: dict[str, Wheel] = Field({})
    stops: tuple[Stop, ...] = (Stop(name="home"), Stop(name="work"))
    rates: dict[str, float] = Field({"front.*": 1.0, "front.left": 2.0, "*": 3.0})
    label: str = ""
    spare: Wheel | None = None


def test_polymorphic_values_come_back_as_what_they_were():
    bike = Bike(wheels=(Spoked(spokes=3), Wheel(size=2)), bags={"a": Spoked()}, spare=Spoked(size=0.5), label="é \n")
    again = from_json(bike.to_json(), Bike)
    assert again == bike
    assert [type(wheel) for wheel in again.wheels] == [Spoked, Wheel]
    assert type(again.bags["a"]) is Spoked
    assert again.to_json() == bike.to_json()


@given(size=st.floats(1e-9, 1e9), spokes=st.integers(), label=st.text())
def test_any_value_comes_back(size, spokes, label):
    bike = Bike(wheels=(Spoked(size=size, spokes=spokes),), label=label)
    assert from_json(bike.to_json(), Bike) == bike


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("function", catalog(), ids=lambda function: function.__name__)
def test_every_recipe_comes_back(function, size):
    recipe = function(size)
    again = from_json(recipe.to_json(), Recipe)
    assert again == recipe
    assert again.to_json() == recipe.to_json()


def test_values_are_frozen_and_complete():
    with pytest.raises(ValidationError, match="frozen"):
        Wheel().size = 2.0
    with pytest.raises(ValidationError, match="siez"):
        Wheel(siez=1)
    with pytest.raises(ValidationError):
        Wheel().replace(size=-1)
    assert Spoked(spokes=2).replace(size=3.0) == Spoked(spokes=2, size=3.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a valid Bike"),
        ("[1]", "not a valid Bike"),
        ('{"type": "test_config.Bik"}', "did you mean 'test_config.Bike'"),
        ('{"type": "os.system"}', "no part is called 'os.system'"),
        ('{"type": 5}', "a type tag is text"),
        ('{"type": ["a"]}', "a type tag is text"),
        ('{"type": "test_config.Wheel"}', "expected a test_config.Bike"),
        ('{"type": "test_config.Bike", "spare": {"type": "test_config.Stop", "name": "x"}}', "test_config.Stop"),
        ('{"type": "test_config.Bike", "label": 5}', "label"),
        ('{"type": "test_config.Bike", "colour": "red"}', "colour"),
        ('{"type": "test_config.Bike", "wheels": [{"size": -1}]}', r"wheels.0.*greater than 0"),
    ],
)
def test_text_that_is_no_such_value_is_one_error_with_place_and_reason(text, message):
    with pytest.raises(UserError, match=message):
        from_json(text, Bike)


def test_a_tag_is_looked_up_and_never_imported(monkeypatch):
    before = set(sys.modules)
    for tag in ("antigravity.Thing", "this.Zen", "subprocess.Popen"):
        with pytest.raises(ValueError, match="no part is called"):
            lookup(tag)
    assert not {"antigravity", "this"} & (set(sys.modules) - before)


EVERY = """
import importlib, pkgutil, sensorium
from sensorium.config import Config, _subclasses
for info in pkgutil.walk_packages(sensorium.__path__, "sensorium."):
    # a server's settings are given on its command line and stand in no checkpoint
    if not info.name.endswith("__main__") and not info.name.startswith("sensorium.serve"):
        importlib.import_module(info.name)
print("\\n".join(sorted({sub.tag() for sub in _subclasses(Config)})))
"""


@pytest.mark.slow
def test_every_part_is_found_by_its_tag_in_a_process_that_has_imported_none():
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    tags = subprocess.run([sys.executable, "-c", EVERY], env=environment, capture_output=True, text=True, check=True)
    assert len(tags.stdout.split()) > 30
    program = (
        "import sys\nfrom sensorium.config import lookup\nfor tag in sys.argv[1:]:\n    assert lookup(tag).tag() == tag"
    )
    command = [sys.executable, "-c", program, *tags.stdout.split()]
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-500:]


def test_build_makes_the_part_that_owns_the_value():
    class Engine:
        class Config(Config):
            power: int = 1

        def __init__(self, config, fuel):
            self.config, self.fuel = config, fuel

    owned(Engine)
    made = Engine.Config(power=3).build("wood")
    assert (type(made), made.config.power, made.fuel) == (Engine, 3, "wood")
    with pytest.raises(TypeError, match="builds no part"):
        Wheel().build()


@pytest.mark.parametrize(
    ("assignment", "reach", "value"),
    [
        ("label=red", lambda bike: bike.label, "red"),
        ("label=a=b", lambda bike: bike.label, "a=b"),
        ("label=nan", lambda bike: bike.label, "nan"),
        ("wheels.0.size=5e-4", lambda bike: bike.wheels[0].size, 5e-4),
        ("wheels.1.spokes=3", lambda bike: bike.wheels[1].spokes, 3),
        ("stops.work.minutes=9", lambda bike: bike.stops[1].minutes, 9),
        ("rates.*=0.5", lambda bike: bike.rates, {"front.*": 1.0, "front.left": 2.0, "*": 0.5}),
        ("rates.front.left=7", lambda bike: bike.rates, {"front.*": 1.0, "front.left": 7.0, "*": 3.0}),
        ("rates={back: 1}", lambda bike: bike.rates, {"back": 1.0}),
        ("spare={type: test_config.Spoked, spokes: 4}", lambda bike: bike.spare, Spoked(spokes=4)),
        ("spare=null", lambda bike: bike.spare, None),
    ],
)
def test_overrides(assignment, reach, value):
    bike = Bike()
    changed = override(bike, assignment)
    assert reach(changed) == value
    assert bike == Bike()
    rest = {name for name in Bike.model_fields if name != assignment.split("=")[0].split(".")[0]}
    assert all(getattr(changed, name) == getattr(bike, name) for name in rest)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("label", "not of the form path=value"),
        ("=3", "not of the form path=value"),
        ("labbel=x", "did you mean 'label'"),
        ("wheels.0.siz=1", "did you mean 'size'"),
        ("wheels.7.size=1", "no element '7': known: 0, 1"),
        ("stops.wrok.minutes=1", "did you mean 'work'"),
        ("rates.frnt=1", "did you mean 'front"),
        ("bags.a=1", "nothing is known here"),
        ("label.x=1", "goes below a plain value"),
        ("wheels.0.size=big", "wheels.0.size=big.*size"),
        ("wheels.0.size=-1", "greater than 0"),
        ("wheels.1.spokes=2.5", "integer"),
        ("stops.work.minutes=[1", "not readable"),
        ("spare={type: test_config.Stop, name: x}", "test_config.Wheel"),
    ],
)
def test_an_override_that_is_wrong_says_what_and_what_is_near(assignment, message):
    with pytest.raises(UserError, match=message):
        override(Bike(), assignment)


@pytest.mark.parametrize(
    ("assignment", "reach", "value"),
    [
        ("stages.align.lr=5e-4", lambda recipe: recipe.stage("align").lr, 5e-4),
        ("stages.0.steps=7", lambda recipe: recipe.stages[0].steps, 7),
        ("model.connectors.image.depth=3", lambda recipe: recipe.model.connectors["image"].depth, 3),
        (
            "model.connectors.image={type: connectors.pool.AveragePool, factor: 4}",
            lambda recipe: recipe.model.connectors["image"],
            AveragePool.Config(factor=4),
        ),
        ("seed=3", lambda recipe: recipe.seed, 3),
    ],
)
def test_overrides_of_a_recipe(assignment, reach, value):
    assert reach(override(find("llava", "tiny"), assignment)) == value


def test_a_rate_of_a_glob_with_dots_is_reached():
    recipe = find("llava-next", "paper")
    name = recipe.stages[1].name
    changed = override(recipe, f"stages.{name}.lr.encoders.*=1e-7")
    assert changed.stages[1].lr == {**recipe.stages[1].lr, "encoders.*": 1e-7}


USER_FILE = """
from sensorium.connectors.mlp import MLP
from sensorium.recipes.llava import llava


class Double(MLP):
    class Config(MLP.Config):
        twice: int = 2


def mine(size="tiny"):
    recipe = llava(size)
    return recipe.replace(model=recipe.model.replace(connectors={"image": Double.Config(twice=3)}))
"""


def test_a_part_of_a_users_own_file_round_trips_once_the_file_is_loaded(tmp_path):
    path = tmp_path / "my_parts.py"
    path.write_text(USER_FILE)
    recipe = find(f"{path}:mine", "tiny")
    text = recipe.to_json()
    assert json.loads(text)["model"]["connectors"]["image"]["type"] == "recipe_my_parts.Double"
    again = from_json(text, Recipe)
    assert again == recipe
    part = again.model.connectors["image"]
    assert part.twice == 3
    assert type(part.build(4, 4)).__name__ == "Double"
    assert issubclass(type(part), MLP.Config)
    assert isinstance(part, Connector.Config)


def test_yaml_is_for_people():
    assert "depth: 1" in MLP.Config(depth=1).to_yaml()


def test_nearest():
    assert nearest("lable", ["label", "size"]) == "did you mean 'label'?"
    assert nearest("zzz", ["b", "a"]) == "known: a, b"
    assert nearest("zzz", []) == "nothing is known here"


def test_a_part_that_moved_is_found_by_its_old_name():
    assert lookup("render.Template") is Template
    assert all(lookup(before) is lookup(after) for before, after in MOVED.items())
