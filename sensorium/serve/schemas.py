"""What the routes read and answer: the OpenAI interface's fields, and the further ones that vLLM has made common.

Unknown fields are ignored, as there; a known field of a wrong type is an error.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Real = Annotated[float, Field(allow_inf_nan=False)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
LONGEST_RULE = 65_536
LONGEST_FORM = 262_144
"""Characters of a schema as JSON, and of all choices: a grammar takes ten times as many bytes, and is kept a while."""


class Wire(BaseModel):
    """A value of a request: nothing is taken for what it is not."""

    model_config = ConfigDict(extra="ignore", strict=True, protected_namespaces=())


# ---- messages


class ImageUrl(Wire):
    url: str = Field(min_length=1, description="data:image/png;base64,...; https://... where the server allows it")
    detail: str | None = None


class TextPart(Wire):
    type: Literal["text"]
    text: str


class ImagePart(Wire):
    type: Literal["image_url"]
    image_url: ImageUrl | Annotated[str, Field(min_length=1)]

    @property
    def url(self) -> str:
        return self.image_url if isinstance(self.image_url, str) else self.image_url.url


class InputAudio(Wire):
    data: str = Field(min_length=1, description="base64 of a WAV file (PCM)")
    format: Literal["wav"]


class AudioPart(Wire):
    type: Literal["input_audio"]
    input_audio: InputAudio


Part = Annotated[TextPart | ImagePart | AudioPart, Field(discriminator="type")]


class Message(Wire):
    """One turn. Calls of tools in earlier turns are to be written as text in `content`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


# ---- what is asked


class JsonSchema(Wire):
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class TextFormat(Wire):
    type: Literal["text"]


class ObjectFormat(Wire):
    type: Literal["json_object"]


class SchemaFormat(Wire):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


class StreamOptions(Wire):
    include_usage: bool | None = None


class Structured(Wire):
    """vLLM's later way to say what the guided_ fields say: exactly one of them."""

    choice: list[Annotated[str, Field(min_length=1)]] | None = Field(default=None, min_length=1, max_length=1024)
    regex: str | None = Field(default=None, min_length=1, max_length=LONGEST_RULE)
    json_: dict[str, Any] | None = Field(default=None, alias="json")


class Asked(Wire):
    """What chat and plain completions have in common. temperature: where it is not given, the likeliest token is taken
    each time, so that the same question has the same answer."""

    model: str
    temperature: Real | None = Field(default=None, ge=0, le=2)
    top_p: Real | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=2**31 - 1, description="0 or -1: all tokens")
    min_p: Real | None = Field(default=None, ge=0, le=1)
    repetition_penalty: Real | None = Field(default=None, ge=0.01, le=10)
    presence_penalty: Real | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: Real | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[Real, Field(ge=-100, le=100)]] | None = Field(default=None, max_length=1024)
    max_tokens: Count | None = None
    n: int | None = Field(default=None, ge=1, le=128)
    seed: Seed | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    guided_choice: list[Annotated[str, Field(min_length=1)]] | None = Field(default=None, min_length=1, max_length=1024)
    guided_regex: str | None = Field(default=None, min_length=1, max_length=LONGEST_RULE)
    guided_json: dict[str, Any] | None = None
    structured_outputs: Structured | None = None


class NamedTool(Wire):
    type: Literal["function"]
    function: dict[str, Any]


class Tool(Wire):
    type: Literal["function"]
    function: dict[str, Any]


class ChatRequest(Asked):
    messages: list[Message] = Field(min_length=1, max_length=4096)
    max_completion_tokens: Count | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: list[Tool] | None = Field(default=None, max_length=256)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None


class CompletionRequest(Asked):
    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=1024)]
        | Annotated[list[TokenId], Field(min_length=1, max_length=200_000)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=1024)]
    )
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=20)
    suffix: str | None = None
    best_of: int | None = Field(default=None, ge=1, le=128)


EmbeddingPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]
Input = str | EmbeddingPart | Annotated[list[EmbeddingPart], Field(min_length=1)]


class EmbeddingRequest(Wire):
    """input: a text, a picture (a part, or a data: URL as a text), the parts of one document, ids of tokens; or a list
    of them."""

    model: str
    input: (
        str
        | Annotated[list[Input], Field(min_length=1)]
        | Annotated[list[TokenId], Field(min_length=1, max_length=200_000)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    user: str | None = None
