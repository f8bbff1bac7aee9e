"""Golden ids and properties of the one renderer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.errors import UserError
from sensorium.render import Renderer, Template, TooLong
from sensorium.sequence import CLEAN, Item, Plan, Sample, Segment
from sensorium.tokenizer import Tokenizer

TOKENIZER = Tokenizer.bytes()
PAD, START, END = 256, 257, 258
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


class Picture:
    def __init__(self, name: str, side: int = 2) -> None:
        self.name, self.side = name, side

    def key(self) -> str:
        return self.name

    def shape(self) -> tuple[int, int]:
        return (self.side, self.side)

    def load(self):
        raise AssertionError("planning must not decode")


def renderer(**template) -> Renderer:
    """A picture of side n takes n x n tokens."""
    return Renderer(
        TOKENIZER,
        Template(**template),
        lambda kind, shape: Plan(shape[0] * shape[1]),
        lambda kind, media: Item(torch.zeros(1), media.shape(), media.key()),
    )


RENDERER = renderer()


def user(text):
    return Segment("text", text, role="user")


def assistant(text, **more):
    return Segment("text", text, role="assistant", **more)


def picture(name="p", side=2, role="user"):
    return Segment("image", Picture(name, side), role=role)


def bytes_of(text):
    return list(text.encode())


def test_golden_ids_and_weights_of_chatml():
    sequence = RENDERER.render(Sample((picture(), user("Hi"), assistant("Yo"))))
    expected = [
        *(START, *bytes_of("user\n"), PAD, PAD, PAD, PAD, *bytes_of("Hi"), END, *bytes_of("\n")),
        *(START, *bytes_of("assistant\nYo"), END),
    ]
    assert sequence.ids.tolist() == expected
    weights = [0.0] * (len(expected) - 3) + [1.0] * 3  # Y, o and the stop token
    assert sequence.weight.tolist() == weights
    assert [int(kind) for kind in sequence.modality] == [1 if token == PAD else 0 for token in expected]
    assert sequence.position[:, 0].tolist() == list(range(len(expected)))
    assert torch.equal(sequence.position[:, 0], sequence.position[:, 2])
    [span] = sequence.spans
    assert (span.kind, span.start, span.length, span.item, span.mode) == ("image", 6, 4, 0, "embed")
    assert [item.key for item in sequence.items["image"]] == ["p"]


def test_every_turn_of_the_assistant_is_trained_and_nothing_else():
    turns = (Segment("text", "S", role="system"), user("a"), assistant("bc"), user("d"), assistant("e"))
    sequence = RENDERER.render(Sample(turns))
    trained = [token for token, weight in zip(sequence.ids.tolist(), sequence.weight.tolist()) if weight]
    assert trained == [*bytes_of("bc"), END, *bytes_of("e"), END]


def test_the_sample_decides_over_the_rule():
    turns = (
        user("a"),
        assistant("skip", train=False),
        Segment("text", "learn", role="user", train=True),
        assistant("e"),
    )
    sequence = RENDERER.render(Sample(turns))
    trained = [token for token, weight in zip(sequence.ids.tolist(), sequence.weight.tolist()) if weight]
    assert trained == [*bytes_of("learn"), END, *bytes_of("e"), END]


def test_generation_opens_the_turn_of_the_assistant():
    closed = RENDERER.render(Sample((user("Hi"), assistant("Yo"))))
    opened = RENDERER.render(Sample((user("Hi"),)), generate=True)
    assert closed.ids.tolist() == [*opened.ids.tolist(), *bytes_of("Yo"), END]
    assert opened.weight.sum() == 0


def test_plain_samples_have_no_template():
    sequence = RENDERER.render(Sample((Segment("image", Picture("p")), Segment("text", "a cat"))))
    assert sequence.ids.tolist() == [START, *[PAD] * 4, *bytes_of("a cat"), END]
    assert sequence.weight.tolist() == [0.0] * 5 + [1.0] * 6
    opened = RENDERER.render(Sample((Segment("image", Picture("p")), Segment("text", "a cat"))), generate=True)
    assert opened.ids.tolist() == [START, *[PAD] * 4, *bytes_of("a cat")]


def test_plain_texts_are_filled_with_padding_that_the_model_reads():
    filled = renderer(begin="", length=6, pad="<|endoftext|>")
    one = filled.render(Sample((Segment("text", "ab"),)))
    end, pad = filled.tokenizer.special["<|im_end|>"], filled.tokenizer.special["<|endoftext|>"]
    assert one.ids.tolist() == [*b"ab", end, pad, pad, pad]
    assert one.weight.tolist() == [0, 1, 1, 0, 0, 0]
    assert one.position[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert filled.render(Sample((Segment("text", "ab"),)), generate=True).ids.tolist() == [*b"ab"]
    assert len(filled.render(Sample((picture(role=None),)))) == 5  # four features and the end: no text to fill
    assert filled.render(Sample((Segment("text", "abcde"),))).ids.tolist() == [*b"abcde", end]
    with pytest.raises(TooLong, match="7 tokens, the model reads 6"):
        filled.render(Sample((Segment("text", "abcdef"),)))
    with pytest.raises(UserError, match="filled with '<none>'"):
        renderer(length=6, pad="<none>")


def test_a_memory_before_every_word_stands_at_the_first():
    render = Renderer(Tokenizer.bytes(), Template(begin=""), lambda kind, shape: Plan(3, "memory"))
    one = render.render(Sample((picture(role=None), Segment("text", "ab"))), items=False)
    assert one.ids.tolist()[:2] == [*b"ab"]
    assert [(span.start, span.length, span.mode) for span in one.spans] == [(0, 3, "memory")]
    with pytest.raises(UserError, match="empty"):
        render.render(Sample((picture(role=None),)), items=False, generate=True)


def test_items_may_stand_ahead_of_all_text():
    first = renderer(
        ahead=("image",), chat="{% for m in messages %}{{ m['content'] }}{% endfor %}", opens="<|im_start|>"
    )
    plain = first.render(Sample((Segment("text", "a cat"), Segment("image", Picture("p")))))
    assert plain.ids.tolist() == [*[PAD] * 4, START, *bytes_of("a cat"), END]
    asked = first.render(Sample((user("x"), picture("a", 1), picture("b"), user("y"))), generate=True)
    assert asked.ids.tolist() == [*[PAD] * 5, START, *bytes_of("xy")]
    assert [(span.start, span.item) for span in asked.spans] == [(0, 0), (1, 1)]
    options = (user("x"), picture(), *(assistant(one, branch=at) for at, one in enumerate("yz", 1)))
    branched = first.render(Sample(options))
    assert branched.ids.tolist() == [*[PAD] * 4, START, *bytes_of("xyz")]
    assert branched.branch.tolist() == [0] * 6 + [1, 2]
    with pytest.raises(ValueError, match="stand ahead of all text"):
        renderer(ahead=("image",), media={"image": ("<Img>", "</Img>")})


def test_the_first_token_of_a_document_carries_no_loss():
    assert renderer(begin="").render(Sample((Segment("text", "ab"),))).weight.tolist() == [0.0, 1.0, 1.0]


def test_media_may_be_wrapped_and_a_system_message_put_first():
    wrapped = renderer(system="Be kind.", media={"image": ("<Img>", "</Img>")})
    text = wrapped.tokenizer.decode(wrapped.render(Sample((picture(), user("x")))).ids.tolist(), skip_special=False)
    media = "<Img>" + "<|endoftext|>" * 4 + "</Img>"
    assert text == f"<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n{media}x<|im_end|>\n"
    own = wrapped.render(Sample((Segment("text", "Mine.", role="system"), user("x"))))
    assert "Be kind." not in wrapped.tokenizer.decode(own.ids.tolist())


def test_planning_loads_nothing_and_gives_the_same_tokens():
    sample = Sample((picture("a"), picture("b", 3), user("x"), assistant("y")))
    plan, whole = RENDERER.render(sample, items=False), RENDERER.render(sample)
    for name in ("ids", "weight", "position", "modality", "branch"):
        assert torch.equal(getattr(plan, name), getattr(whole, name))
    assert plan.spans == whole.spans
    assert [(item.data, item.shape, item.key) for item in plan.items["image"]] == [
        (None, (2, 2), "a"),
        (None, (3, 3), "b"),
    ]


# ---- what people type

pieces = st.one_of(
    st.sampled_from([*SPECIAL, "<|im_", "end|>", "\n", "{{ 7 * 7 }}", "{% raw %}", "\ue0000\ue001"]), st.text()
)
typed = st.lists(pieces, min_size=1, max_size=6).map("".join).filter(bool)


@settings(deadline=None, max_examples=100)
@given(question=typed, answer=typed, system=typed)
def test_typed_text_never_becomes_a_special_token(question, answer, system):
    turns = (Segment("text", system, role="system"), user(question), assistant(answer))
    sequence = RENDERER.render(Sample(turns))
    ids = sequence.ids.tolist()
    assert [ids.count(token) for token in (PAD, START, END)] == [0, 3, 3]
    trained = [token for token, weight in zip(ids, sequence.weight.tolist()) if weight]
    assert trained == [*bytes_of(answer), END]
    runs = bytes(token if token < 256 else 0xFF for token in ids).split(b"\xff")  # 0xFF is no byte of UTF-8
    said = [run.decode() for run in runs if run not in (b"", b"\n")]
    assert said == ["system\n" + system, "user\n" + question, "assistant\n" + answer]


@settings(deadline=None, max_examples=100)
@given(
    prompt=st.text(max_size=12),
    options=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4),
    pictures=st.lists(st.integers(1, 3), max_size=2),
)
def test_a_branch_is_the_conversation_rendered_alone(prompt, options, pictures):
    trunk = (*(picture(str(side), side) for side in pictures), user(prompt + "?"))
    branches = tuple(assistant(option, branch=number) for number, option in enumerate(options, 1))
    joined = RENDERER.render(Sample((*trunk, *branches)))
    for number, option in enumerate(options, 1):
        alone = RENDERER.render(Sample((*trunk, assistant(option))))
        mine = (joined.branch == 0) | (joined.branch == number)
        for name in ("ids", "modality", "position", "weight"):
            assert torch.equal(getattr(joined, name)[mine], getattr(alone, name))
        assert joined.spans == alone.spans
    assert joined.branch.tolist() == sorted(joined.branch.tolist())
    shared = int((joined.branch == 0).sum())
    assert shared >= len(bytes_of(prompt)) + sum(side * side for side in pictures)


def test_pictures_may_stand_on_a_branch():
    sample = Sample((user("which?"), *(
        segment for number in (1, 2) for segment in
        (Segment("image", Picture(str(number)), role="user", branch=number), assistant("yes", branch=number))
    )))  # fmt: skip
    joined = RENDERER.render(sample)
    assert [joined.branch[span.start].item() for span in joined.spans] == [1, 2]
    assert [item.key for item in joined.items["image"]] == ["1", "2"]


def test_branches_without_a_common_beginning_are_refused():
    with pytest.raises(UserError, match="share their beginning"):
        RENDERER.render(Sample((assistant("x", branch=1), assistant("y", branch=2), user("late"))))


# ---- truncation


@settings(deadline=None, max_examples=100)
@given(
    turns=st.lists(
        st.tuples(st.integers(0, 3), st.text("ab", max_size=9), st.text("cd", max_size=9)), min_size=1, max_size=5
    ),
    limit=st.integers(1, 200),
)
def test_truncation_leaves_whole_last_turns_or_raises(turns, limit):
    system = (Segment("text", "S", role="system"),)
    blocks = [
        ((picture(str(index), side), user(ask), assistant(say)) if side else (user(ask), assistant(say)))
        for index, (side, ask, say) in enumerate(turns)
    ]
    suffixes = [sum(blocks[start:], system) for start in range(len(blocks))]
    lengths = [len(RENDERER.render(Sample(suffix))) for suffix in suffixes]
    sample = Sample(suffixes[0])
    fitting = [number for number, length in enumerate(lengths) if length <= limit]
    if not fitting:
        with pytest.raises(TooLong, match=rf"has {lengths[-1]} tokens, at most {limit}"):
            RENDERER.render(sample, max_tokens=limit)
        return
    cut, expected = RENDERER.render(sample, max_tokens=limit), RENDERER.render(Sample(suffixes[fitting[0]]))
    assert cut.ids.tolist() == expected.ids.tolist()
    assert cut.spans == expected.spans
    assert [item.key for item in cut.items.get("image", [])] == [item.key for item in expected.items.get("image", [])]


def test_branches_are_never_truncated():
    sample = Sample((user("a"), assistant("b"), user("c"), assistant("x", branch=1), assistant("y", branch=2)))
    with pytest.raises(TooLong):
        RENDERER.render(sample, max_tokens=20)


# ---- mistakes


def test_mistakes_are_named():
    with pytest.raises(UserError, match="not valid Jinja"):
        renderer(chat="{% for %}")
    with pytest.raises(UserError, match="stops at '</s>'"):
        renderer(stop="</s>")
    with pytest.raises(UserError, match="needs Media"):
        RENDERER.render(Sample((Segment("image", "cat.jpg", role="user"),)))
    with pytest.raises(UserError, match="neither text nor media"):
        renderer(begin="").render(Sample((Segment("text", ""),)), generate=True)
    with pytest.raises(UserError, match="cannot write"):
        renderer(chat="{{ raise_exception('roles must alternate') }}").render(Sample((user("x"),)))
    unsafe = renderer(chat="{{ messages.__class__.__mro__ }}")
    with pytest.raises(UserError, match="cannot write"):
        unsafe.render(Sample((user("x"),)))


def test_an_item_may_stand_in_several_spans_and_what_is_not_visible_takes_no_room():
    noised = Plan(2, "latent", 1, visible=False, learned=True, also=(Plan(2, "latent", 1, time=CLEAN), Plan(3)))
    load = lambda kind, media: Item(torch.zeros(1), media.shape(), media.key())  # noqa: E731
    several = Renderer(TOKENIZER, Template(), lambda kind, shape: noised, load)
    learned = several.render(Sample((Segment("text", "ab"), picture("p", role=None))))
    given = several.render(Sample((picture("p", role=None), Segment("text", "ab"))))
    assert [(span.start, span.length, span.mode, span.visible, span.time, span.item) for span in learned.spans] == [
        (3, 2, "latent", False, None, 0), (5, 2, "latent", True, CLEAN, 0), (7, 3, "embed", True, None, 0)
    ]  # fmt: skip
    assert learned.position[:, 0].tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 6, 7, 8]
    assert [(span.start, span.time) for span in given.spans] == [(1, CLEAN), (3, None)]
    assert given.position[:, 0].tolist() == list(range(9))
    assert len(learned.items["image"]) == len(given.items["image"]) == 1


def test_plain_numbers_are_items():
    loaded = []
    load = lambda kind, media: loaded.append(media) or Item(media.load(), media.shape(), media.key())  # noqa: E731
    plain = Renderer(TOKENIZER, Template(), lambda kind, shape: Plan(shape[0]), load)
    sequence = plain.render(Sample((Segment("state", [0.5, 1]), Segment("action", [[1, 2, 3], [4, 5, 6]]))))
    assert [(span.kind, span.start, span.length) for span in sequence.spans] == [("state", 1, 1), ("action", 2, 2)]
    assert sequence.items["action"][0].data.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert [media.shape() for media in loaded] == [(1, 2), (2, 3)]
    with pytest.raises(UserError, match="plain numbers are"):
        plain.render(Sample((Segment("action", "left"),)))
    with pytest.raises(UserError, match="needs Media"):
        plain.render(Sample((Segment("image", [1, 2]),)))


def test_a_placeholder_that_stays_is_the_token_its_item_stands_at():
    chat = (
        "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] or '<|endoftext|>' }}{% endfor %}{% endfor %}"
    )
    said = {"chat": chat, "placeholder": {"image": "<|endoftext|>"}}
    sample = Sample((user("a"), picture("p"), picture("q"), user("b")))
    a, b = bytes_of("ab")
    gone = renderer(**said).render(sample)
    assert gone.ids.tolist() == [a, *[PAD] * 8, b]
    stays = Renderer(TOKENIZER, Template(**said, marked=("image",)), lambda kind, shape: Plan(3, "memory"))
    sequence = stays.render(sample, items=False)
    assert sequence.ids.tolist() == [a, TOKENIZER.special["<|endoftext|>"], TOKENIZER.special["<|endoftext|>"], b]
    assert [(span.start, span.length, span.item) for span in sequence.spans] == [(1, 3, 0), (2, 3, 1)]
