"""Answers that are held to a form, over HTTP; the model is untrained, so that what it says is of no help."""

import json
import re

import openai
import pytest
from pydantic import BaseModel
from serving import hello

SCHEMA = {
    "type": "object", "properties": {"kind": {"enum": ["cat", "dog"]}, "wild": {"type": "boolean"}},
    "required": ["kind", "wild"], "additionalProperties": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def client(served):
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=60)


def said(client, **options):
    answer = client.chat.completions.create(**hello(max_tokens=200), **options)
    return answer.choices[0].message.content


def test_a_json_schema(client):
    form = {"type": "json_schema", "json_schema": {"name": "animal", "strict": True, "schema": SCHEMA}}
    value = json.loads(said(client, response_format=form))
    assert value["kind"] in ("cat", "dog")
    assert isinstance(value["wild"], bool)
    chunks = client.chat.completions.create(**hello(max_tokens=200), response_format=form, stream=True)
    assert json.loads("".join(chunk.choices[0].delta.content or "" for chunk in chunks)) == value
    assert json.loads(said(client, extra_body={"guided_json": SCHEMA})) == value
    assert json.loads(said(client, extra_body={"structured_outputs": {"json": SCHEMA}})) == value


def test_choices_and_expressions(client):
    assert said(client, extra_body={"guided_choice": ["yes", "no"]}) in ("yes", "no")
    assert said(client, extra_body={"structured_outputs": {"choice": ["left", "right"]}}) in ("left", "right")
    assert re.fullmatch(r"[0-9]{3}-[a-f]{2}", said(client, extra_body={"guided_regex": r"[0-9]{3}-[a-f]{2}"}))
    plain = client.completions.create(model="tiny", prompt="so", extra_body={"guided_choice": ["up", "down"]})
    assert plain.choices[0].text in ("up", "down")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_json": {"type": "wrong"}}, "guided_json"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 7}}}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"structured_outputs": {"regex": "(?!x)"}}, "structured_outputs"),
    ],
)
def test_forms_that_cannot_be(served, fields, param):
    answer = served.client.post("/v1/chat/completions", json=hello(**fields))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_an_object_of_any_form(client):
    form = {"type": "json_object"}
    answer = client.chat.completions.create(**hello(max_tokens=40), response_format=form)
    text = answer.choices[0].message.content
    assert text.lstrip().startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_the_openai_client_parses_and_langchain_does(served, client, model):
    from langchain_openai import ChatOpenAI  # seconds, which other tests need not wait for

    class Animal(BaseModel):
        wild: bool
        legs: bool

    messages = hello()["messages"]
    parsed = client.chat.completions.parse(model="tiny", messages=messages, response_format=Animal, max_tokens=200)
    assert isinstance(parsed.choices[0].message.parsed, Animal)
    chat = ChatOpenAI(base_url=f"{served.url}/v1", api_key="none", model="tiny", max_tokens=200)
    found = chat.with_structured_output(Animal, method="json_schema").invoke("hello")
    assert found == parsed.choices[0].message.parsed
