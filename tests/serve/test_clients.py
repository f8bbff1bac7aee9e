"""Clients that people have, unchanged: the openai package, LangChain's ChatOpenAI."""

import json

import numpy as np
import openai
import pytest
from serving import data_url, encoded, server, shown

from sensorium.api import Model
from sensorium.serve.hosted import Hosted
from sensorium.serve.limits import Limits


@pytest.fixture(scope="module")
def client(served):
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=20)


QUESTION = [{"role": "user", "content": "hello"}]


def test_chat_and_its_stream_say_what_the_model_says(client, model):
    expected = model.chat(QUESTION, max_tokens=9)
    whole = client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=9)
    assert whole.choices[0].message.content == expected
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].finish_reason in ("stop", "length")
    prompt = len(model.engine.prompt(model_sample(QUESTION), sampling()))
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (prompt, 9)
    assert whole.usage.total_tokens == prompt + 9
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(model="tiny", messages=QUESTION, max_completion_tokens=9, **options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage.completion_tokens == 9
    assert len({chunk.id for chunk in chunks}) == 1


def model_sample(messages):
    from sensorium.api import messages_to_sample

    return messages_to_sample(messages)


def sampling():
    from sensorium.infer.sampling import Sampling

    return Sampling()


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "bmp"])
def test_pictures_of_every_format_that_is_taken(client, model, kind):
    content = encoded(kind.upper())
    messages = shown(data_url(content, kind))
    parts = [{"type": "image", "image": content}, {"type": "text", "text": "What is it?"}]
    expected = model.chat([{"role": "user", "content": parts}], max_tokens=6)
    answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=6)
    assert answer.choices[0].message.content == expected


def test_several_pictures_cost_their_tokens_and_are_told_apart(client, model):
    count = model.recipe.model.num_tokens("image", (30, 40))
    usage = [
        client.chat.completions.create(model="tiny", messages=shown(*urls), max_tokens=1).usage.prompt_tokens
        for urls in ([data_url()], [data_url(), data_url(encoded(seed=1))])
    ]
    assert usage[1] - usage[0] == count + 1  # and the line break behind it


def test_sampling_follows_its_seed(client):
    def said(**options):
        answer = client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=12, **options)
        return answer.choices[0].message.content

    drawn = [said(temperature=2, seed=seed, top_p=0.99) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({said(temperature=2) for _ in range(4)}) > 1  # without a seed every answer is another
    assert said() == said()
    assert said(extra_body={"top_k": 1}, temperature=2) == said()


def test_a_stop_text_ends_the_answer(client):
    whole = client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=12).choices[0].message.content
    stop = whole[3:5]
    answer = client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=12, stop=[stop])
    assert answer.choices[0].message.content == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_log_probabilities(client, model):
    options = {"max_tokens": 3, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(model="tiny", messages=QUESTION, **options)
    content = whole.choices[0].logprobs.content
    logits = model.logits(QUESTION)[1][-1]
    best = logits.log_softmax(-1).topk(2).values.tolist()
    assert content[0].logprob == pytest.approx(best[0], abs=1e-4)
    assert [one.logprob for one in content[0].top_logprobs] == pytest.approx(best, abs=1e-4)
    assert content[0].top_logprobs[0].token == content[0].token
    assert len(content) == 3
    chunks = client.chat.completions.create(model="tiny", messages=QUESTION, stream=True, **options)
    streamed = [one for chunk in chunks if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content]
    assert [one.logprob for one in streamed] == pytest.approx([one.logprob for one in content], abs=1e-4)
    plain = client.completions.create(model="tiny", prompt="once", max_tokens=3, logprobs=2).choices[0].logprobs
    assert len(plain.tokens) == len(plain.token_logprobs) == len(plain.top_logprobs) == len(plain.text_offset) == 3
    assert plain.text_offset[0] == 0


def test_several_answers_share_their_prompt(client):
    options = {"model": "tiny", "messages": QUESTION, "n": 3, "temperature": 2, "seed": 5, "max_tokens": 8}
    whole = client.chat.completions.create(**options)
    said = [choice.message.content for choice in whole.choices]
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len(set(said)) == 3
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**options, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == said
    alone = client.chat.completions.create(**{**options, "n": 1})
    assert alone.usage.prompt_tokens == whole.usage.prompt_tokens


def test_what_was_read_before_is_counted(client):
    messages = [{"role": "user", "content": "a long question that is asked twice, word for word, to the letter"}]
    for _ in range(2):
        usage = client.chat.completions.create(model="tiny", messages=messages, max_tokens=2).usage
    assert 0 < usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens


def test_plain_text_is_continued(client, model):
    [expected] = model.generate(["once"], max_tokens=5)
    answer = client.completions.create(model="tiny", prompt="once", max_tokens=5)
    assert answer.choices[0].text == expected
    ids = model.tokenizer.encode("once")
    several = client.completions.create(model="tiny", prompt=[ids, ids], max_tokens=5, echo=True)
    assert [choice.text for choice in several.choices] == ["once" + expected] * 2
    assert [choice.index for choice in several.choices] == [0, 1]
    chunks = client.completions.create(model="tiny", prompt=["once", "once"], max_tokens=5, stream=True)
    said = {0: "", 1: ""}
    for chunk in chunks:
        said[chunk.choices[0].index] += chunk.choices[0].text
    assert said == {0: expected, 1: expected}


def test_embeddings_are_unit_vectors_of_texts_and_pictures(client, model):
    found = client.embeddings.create(model="tiny", input=["a cat", "a dog"])  # the client asks for base64
    expected = model.embed(["a cat", "a dog"])
    expected = (expected / expected.norm(dim=1, keepdim=True)).numpy()
    for one, vector in zip(found.data, expected):
        np.testing.assert_allclose(one.embedding, vector, atol=1e-5)
    numbers = client.embeddings.create(model="tiny", input="a cat", encoding_format="float")
    np.testing.assert_allclose(numbers.data[0].embedding, expected[0], atol=1e-5)
    assert numbers.usage.prompt_tokens == numbers.usage.total_tokens > 0
    picture = client.embeddings.create(model="tiny", input=[data_url(), "a cat"])
    part = [[{"type": "image_url", "image_url": {"url": data_url()}}]]
    again = client.embeddings.create(model="tiny", input=part)  # type: ignore[arg-type]
    np.testing.assert_allclose(picture.data[0].embedding, again.data[0].embedding, atol=1e-5)
    np.testing.assert_allclose(picture.data[1].embedding, expected[0], atol=1e-5)
    assert picture.data[0].embedding != picture.data[1].embedding


def test_models_are_listed(client):
    [card] = client.models.list().data
    assert card.id == "tiny"
    assert client.models.retrieve("tiny").model_extra["reads"] == ["text", "image"]


@pytest.mark.parametrize(
    ("options", "kind", "code"),
    [
        ({"model": "other"}, openai.NotFoundError, "model_not_found"),
        ({"temperature": 9}, openai.BadRequestError, "invalid_value"),
        ({"max_tokens": 10**6}, openai.BadRequestError, "too_large"),
        ({"messages": []}, openai.BadRequestError, "invalid_value"),
        ({"tool_choice": "required"}, openai.BadRequestError, "unsupported_value"),
        ({"messages": [{"role": "user", "content": "word " * 20_000}]}, openai.BadRequestError,
         "context_length_exceeded"),
    ],
)  # fmt: skip
def test_errors_are_the_clients_own(client, options, kind, code):
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": "tiny", "messages": QUESTION, **options})
    assert caught.value.code == code
    assert caught.value.body["type"] == "invalid_request_error"


def test_keys_are_asked_for(hosted):
    with server([hosted], keys=["right", "also right"]) as running:
        for key in ("right", "also right"):
            assert openai.OpenAI(base_url=f"{running.url}/v1", api_key=key).models.list().data
        for key in ("wrong", "righ", "right2"):
            with pytest.raises(openai.AuthenticationError) as caught:
                openai.OpenAI(base_url=f"{running.url}/v1", api_key=key).models.list()
            assert caught.value.code == "invalid_api_key"
        assert running.client.post("/v1/chat/completions", content=b"{").status_code == 401  # before the body
        assert running.client.get("/v1/nothing").status_code == 401
        assert running.client.get("/health").status_code == 200
        described = running.client.get("/openapi.json").json()
        assert described["paths"]["/v1/models"]["get"]["security"] == [{"HTTPBearer": []}]


def test_tools_are_accepted_and_said_to_be_ignored(client):
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    answer = client.chat.completions.with_raw_response.create(
        model="tiny", messages=QUESTION, max_tokens=2, tools=[tool], tool_choice="auto"
    )
    assert answer.headers["x-sensorium-ignored"] == "tools"
    assert answer.parse().choices[0].message.content


def test_tools_are_shown_where_the_chat_template_writes_them(model):
    """A description is part of the prompt; one that is no plain text is refused."""
    telling = model.recipe.template.replace(chat="{{ tools | tojson if tools }}" + model.recipe.template.chat)
    own = Model(model.recipe.replace(template=telling), model.network, model.tokenizer)
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    with server([Hosted.of("tiny", own, Limits())]) as served:
        ask = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0).chat.completions
        plain, *others = (
            ask.with_raw_response.create(model="tiny", messages=QUESTION, max_tokens=2, tools=[tool], tool_choice=how)
            for how in ("none", "auto", openai.omit)
        )
        added = len(json.dumps([tool]))
        for answer in others:
            assert "x-sensorium-ignored" not in answer.headers
            assert answer.parse().usage.prompt_tokens == plain.parse().usage.prompt_tokens + added
        tool["function"]["description"] = "<|im_end|>"
        with pytest.raises(openai.BadRequestError, match="must be plain text"):
            ask.create(model="tiny", messages=QUESTION, max_tokens=2, tools=[tool])


def test_langchain(served, model):
    from langchain_core.messages import HumanMessage, SystemMessage  # seconds, which other tests need not wait for
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    chat = ChatOpenAI(base_url=f"{served.url}/v1", api_key="none", model="tiny", max_tokens=6, temperature=0)
    messages = [SystemMessage("Be short."), HumanMessage(shown(data_url())[0]["content"])]
    whole = chat.invoke(messages)
    expected = model.chat([{"role": "system", "content": "Be short."}, *shown(data_url())], max_tokens=6)
    assert whole.content == expected
    assert whole.usage_metadata["output_tokens"] == 6
    assert "".join(chunk.content for chunk in chat.stream(messages)) == expected
    vectors = OpenAIEmbeddings(
        base_url=f"{served.url}/v1", api_key="none", model="tiny", check_embedding_ctx_length=False
    ).embed_documents(["a cat"])
    assert len(vectors[0]) == model.recipe.model.backbone.width


def test_the_description_names_what_is_answered(served):
    described = served.client.get("/openapi.json").json()
    chat = described["paths"]["/v1/chat/completions"]["post"]
    assert "422" not in chat["responses"]
    assert set(chat["responses"]) >= {"200", "400", "401", "404", "408", "413", "415", "429", "503", "504"}
    assert chat["requestBody"]["content"].keys() == {"application/json"}
    assert "messages" in json.dumps(described["components"]["schemas"]["ChatRequest"]["required"])
