"""Files written here run in llama.cpp itself: the same ids, logits, features and greedy text.

Needs the extra `llamacpp` (llama-cpp-python, which is compiled when it is installed), so it is marked slow.
"""

import base64
import ctypes
import io
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from multimodal import Both, words
from PIL import Image
from test_gguf_vision import CLIP, llava
from test_gguf_write import CASES, LLAMA3, SENTENCES, TEXTS, published, sentences
from test_llava import IMAGE, QWEN, SIGLIP
from test_published import SIZE

import sensorium
from sensorium.api import Model
from sensorium.connectors.mlp import MLP
from sensorium.convert.gguf import open_gguf
from sensorium.convert.gguf_write import write_gguf
from sensorium.convert.published import open_published
from sensorium.data.emoji import concepts, decode
from sensorium.encoders.vit import stack, view_layout
from sensorium.hub import fetch
from sensorium.hub.catalog import SMOLLM2_135M_INSTRUCT
from sensorium.models.fused import Fused
from sensorium.nn.backbone import llama
from sensorium.recipes.catalog import find
from sensorium.render import Template
from sensorium.sequence import Item, Sample, Segment
from sensorium.tokenizer import Tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.llamacpp]

LLAMA_CASES = {**CASES, "llama 3": ("Llama", {**SIZE, "hidden_size": 128}, LLAMA3, "llama")}
GELU_TABLE = 1e-2
"""llama.cpp looks GELU up in a table of float16 numbers."""


def opened(path: Path, **options):
    """In llama.cpp, on one thread, with a cache of float32 numbers."""
    import llama_cpp

    exact = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32, "flash_attn": False}
    return llama_cpp.Llama(str(path), n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False, **exact, **options)


def answer(model, messages: list, count: int) -> str:
    said = model.create_chat_completion(
        messages, temperature=0.0, top_k=1, repeat_penalty=1.0, max_tokens=count
    )  # fmt: skip
    return said["choices"][0]["message"]["content"]


def greedy(model, ids: list[int], count: int, stop: int) -> list[int]:
    """Ids, for models whose text is of broken characters, which each side writes in its own way."""
    model.reset()
    said: list[int] = []
    model.eval(ids)
    while len(said) < count:
        said.append(int(np.argmax(model.scores[model.n_tokens - 1])))
        if said[-1] == stop:
            return said[:-1]
        model.eval(said[-1:])
    return said


@pytest.mark.parametrize("case", LLAMA_CASES)
def test_ids_logits_and_text_of_a_language_model(case, tmp_path):
    name, size, changes, architecture = LLAMA_CASES[case]
    source = open_published(published(tmp_path / "model", name, size, changes))
    out = tmp_path / "model.gguf"
    write_gguf(out, source.model, source.tokenizer, source.template, context=512)
    ours = sensorium.load(tmp_path / "model", precision="fp32")
    theirs = opened(out, logits_all=True)
    worst = 0.0
    for text in TEXTS:
        ids = theirs.tokenize(text.encode(), add_bos=True, special=False)
        mine, logits = ours.engine.logits(Sample((Segment("text", text),)), generate=True)
        assert mine.tolist() == ids
        theirs.reset()
        theirs.eval(ids)
        found = torch.from_numpy(np.array(theirs.scores[: len(ids)]))
        assert logits.std() > 0.1
        worst = max(worst, (found[:, : logits.shape[1]] - logits).abs().max().item())
    print(f"\n{case}: largest difference of logits {worst:.1e}")
    assert worst < (GELU_TABLE if architecture in ("gpt2", "bloom") else 1e-4)
    messages = [{"role": "user", "content": "Say something."}]
    prompt = ours.logits(messages)[0].tolist()
    said = ours.tokenizer.decode(greedy(theirs, prompt, 20, source.tokenizer.special[source.template.stop]))
    assert said == ours.chat(messages, max_tokens=20)


def test_ids_of_pieces(tmp_path):
    """SentencePiece's BPE, as Llama 2's and Vicuna's."""
    tokenizer, out = sentences(), tmp_path / "model.gguf"
    backbone = llama(vocab=tokenizer.vocab_size, width=32, depth=1, heads=2, hidden=32)
    write_gguf(out, Fused.Config(backbone=backbone).build(), tokenizer, Template(stop="</s>"))
    theirs = opened(out)
    for text in SENTENCES:
        assert theirs.tokenize(text.encode(), add_bos=False, special=False) == tokenizer.encode(text)
    trusted = "<s>the cab</s> a<s>ab"
    assert theirs.tokenize(trusted.encode(), add_bos=False, special=True) == tokenizer.encode_trusted(trusted)
    assert theirs.tokenize(b"the", add_bos=True, special=True)[0] == 1


@pytest.mark.network
def test_smollm2_says_the_same(tmp_path):
    model, tokenizer, template = open_gguf(fetch(SMOLLM2_135M_INSTRUCT), torch.float32)
    out = tmp_path / "smollm2.gguf"
    write_gguf(out, model, tokenizer, template, context=8192)
    ours, theirs = sensorium.load(out, precision="fp32"), opened(out)
    for question in ("What is the capital of France?", "Name three colours.", "写一句话。"):
        messages = [{"role": "user", "content": question}]
        said = ours.chat(messages, max_tokens=24)
        assert len(said) > 3
        assert answer(theirs, messages, 24) == said


@pytest.mark.network
@pytest.mark.parametrize(("numbers", "share"), [("bf16", 0.02), ("q8_0", 0.1)])
def test_smollm2_in_fewer_bits(numbers, share, tmp_path):
    """llama.cpp multiplies such matrices with activations that it rounds likewise: near, and not the same.

    share  of the logits' spread that the spread of their differences may be
    """
    model, tokenizer, template = open_gguf(fetch(SMOLLM2_135M_INSTRUCT), torch.float32)
    out = tmp_path / "smollm2.gguf"
    write_gguf(out, model, tokenizer, template, numbers=numbers, context=8192)
    ids, logits = sensorium.load(out, precision="fp32").logits([{"role": "user", "content": "Name three colours."}])
    theirs = opened(out, logits_all=True)
    theirs.eval(ids.tolist())
    found = torch.from_numpy(np.array(theirs.scores[: len(ids)]))
    apart = ((found - logits).std() / logits.std()).item()
    print(f"\n{numbers}: differences of logits spread {apart:.1e} of what logits do")
    assert apart < share


# ---- pictures


def picture(width: int, height: int) -> Image.Image:
    """Smooth colours and hard edges, so that resizing and padding matter."""
    rows, cols = np.mgrid[:height, :width]
    pixels = np.stack([rows * 255 // height, cols * 255 // width, (rows // 7 + cols // 5) % 2 * 255], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8), "RGB")


def address(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def asked(image: Image.Image, question: str) -> list:
    parts = [{"type": "image_url", "image_url": {"url": address(image)}}, {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]


class Eyes:
    """llama.cpp's encoder and projector by themselves."""

    def __init__(self, path: Path) -> None:
        from llama_cpp.llama_chat_format import MTMDChatHandler

        self.handler = MTMDChatHandler(str(path.with_name(f"mmproj-{path.name}")), verbose=False)
        self.model = opened(path, chat_handler=self.handler)

    def features(self, image: Image.Image, width: int) -> torch.Tensor:
        """(tokens, width) of a picture."""
        cpp, handler = self.handler._mtmd_cpp, self.handler
        handler._init_mtmd_context(self.model)
        bitmap = handler._create_bitmap_from_bytes(base64.b64decode(address(image).partition(",")[2]))
        text = cpp.mtmd_input_text()
        text.text = cpp.mtmd_default_marker()
        text.text_len, text.add_special, text.parse_special = len(text.text), False, True
        chunks = cpp.mtmd_input_chunks_init()
        bitmaps = (cpp.mtmd_bitmap_p_ctypes * 1)(bitmap)
        assert cpp.mtmd_tokenize(handler.mtmd_ctx, chunks, ctypes.byref(text), bitmaps, 1) == 0
        every = [cpp.mtmd_input_chunks_get(chunks, at) for at in range(cpp.mtmd_input_chunks_size(chunks))]
        [chunk] = [one for one in every if cpp.mtmd_input_chunk_get_type(one) == cpp.MTMD_INPUT_CHUNK_TYPE_IMAGE]
        count = cpp.mtmd_input_chunk_get_n_tokens(chunk)
        assert cpp.mtmd_encode_chunk(handler.mtmd_ctx, chunk) == 0
        found = np.ctypeslib.as_array(cpp.mtmd_get_output_embd(handler.mtmd_ctx), (count, width)).copy()
        cpp.mtmd_input_chunks_free(chunks)
        cpp.mtmd_bitmap_free(bitmap)
        return torch.from_numpy(found)


@torch.no_grad()
def features(network: Fused, image: Image.Image) -> torch.Tensor:
    encoder = network.encoders["image"]
    seen = encoder([Item(encoder.preprocess(image), (image.height, image.width))])
    return network.connectors["image"](seen)


BASE = find("llava-1.5", "tiny")
EYES = BASE.model.encoders["image"]
TOWERS = {
    "the tiny recipe's": (EYES, MLP.Config()),
    "CLIP's without a class token": (
        EYES.replace(backbone=stack(64, 3, 4, activation="quick_gelu", eps=1e-5, embed_norm=True), drop_last=1),
        MLP.Config(),
    ),
    "SigLIP's, Yi-VL's projector": (
        EYES.replace(backbone=stack(48, 2, 3, activation="gelu_tanh", eps=1e-5)), MLP.Config(norm=True),
    ),
}  # fmt: skip
PRINTED = range(0x20, 0x7F)


def speaking(network: Fused) -> Fused:
    """Printed characters are all that it says."""
    assert network.backbone.head is not None
    silent = [id for id in range(network.config.backbone.vocab) if id not in PRINTED]
    network.backbone.head.weight.data[silent] = 0
    return network


@pytest.mark.parametrize("tower", TOWERS)
def test_a_llava_answers_about_pictures(tower, tmp_path):
    """Square pictures are prepared to the bit as here, so features differ by the table of GELU alone."""
    network = speaking(llava(*TOWERS[tower]))
    out = tmp_path / "model.gguf"
    write_gguf(out, network, Tokenizer.bytes(), BASE.template)
    ours = Model(BASE.replace(model=network.config), network, Tokenizer.bytes())
    eyes = Eyes(out)
    worst, answers = 0.0, set()
    for side in (64, 101, 333, 37):
        image = picture(side, side)
        mine = features(network, image)
        assert mine.std() > 0.5
        worst = max(worst, (mine - eyes.features(image, 64)).abs().max().item())
        for question in ("What is it?", "How many?"):
            messages = asked(image, question)
            said = ours.chat(messages, max_tokens=20)
            assert len(said) == 20
            assert answer(eyes.model, messages, 20) == said
            answers.add(said)
    print(f"\n{tower}: largest difference of features {worst:.1e}")
    assert worst < GELU_TABLE
    assert len(answers) > 4  # it is the picture that they tell of


def test_a_picture_that_is_not_square_differs(tmp_path):
    """There it is resized to whole pixels and then padded; here, as in the paper's own program, padded and then
    resized. What comes out is near, and nearer where the colours around it are the same."""
    found = []
    for color in (None, (122, 116, 104)):
        encoder = EYES.replace(transform=EYES.transform.replace(pad_color=color))
        network = llava(encoder)
        out = tmp_path / f"{color is None}.gguf"
        [note] = write_gguf(out, network, Tokenizer.bytes(), BASE.template).notes
        assert "pads it with (122, 116, 104); this model pads it with" in note
        image = picture(150, 101)
        found.append((features(network, image) - Eyes(out).features(image, 64)).abs().mean().item())
    print(f"\nmean difference of features: {found[0]:.1e}, with the same colour {found[1]:.1e}")
    assert found[1] < found[0]
    assert found[1] < 0.1


@torch.no_grad()
def test_a_class_token_stands_behind_the_patches_there(tmp_path):
    """llama.cpp's issue 25814: its tower is computed here in that order, or as published once that is mended."""
    network = llava(CLIP)
    out = tmp_path / "model.gguf"
    assert "25814" in write_gguf(out, network, Tokenizer.bytes(), BASE.template).notes[-1]
    image = picture(101, 101)
    encoder, theirs = network.encoders["image"], Eyes(out).features(image, 64)
    patches = encoder.patch(encoder.preprocess(image).view(1, 3, 4, 8, 4, 8).permute(0, 2, 4, 1, 3, 5).reshape(16, -1))
    x = torch.cat([patches, encoder.class_token[None]]) + encoder.table()
    x = encoder.backbone(x, view_layout(1, 17, x.device), depth=encoder.depth)
    moved = network.connectors["image"].project(x[1:])
    gaps = {name: (one - theirs).abs().max().item() for name, one in
            (("as published", features(network, image)), ("class token behind", moved))}  # fmt: skip
    print(f"\nlargest difference of features: {gaps}")
    assert min(gaps.values()) < 1e-2
    assert max(gaps.values()) > 1


def test_a_published_llava_answers_about_several_pictures(tmp_path):
    """SigLIP and Qwen2 in LLaVA's layout: its own chat template places the pictures there too."""
    config = transformers.LlavaConfig(
        vision_config=transformers.SiglipVisionConfig(**{**SIGLIP, "image_size": 28}), image_token_index=IMAGE,
        text_config=transformers.Qwen2Config(**QWEN), vision_feature_layer=-1, vision_feature_select_strategy="full",
    )  # fmt: skip
    processor = transformers.LlavaProcessor(
        transformers.SiglipImageProcessorPil(size={"height": 28, "width": 28}), words(), patch_size=7,
        vision_feature_select_strategy="full", num_additional_image_tokens=0,
    )  # fmt: skip
    both = Both.make(tmp_path / "model", transformers.LlavaForConditionalGeneration, config, processor)
    out = tmp_path / "model.gguf"
    ours = both.model
    write_gguf(out, speaking(ours.network), ours.tokenizer, ours.recipe.template)
    eyes, answers = Eyes(out), set()
    for images in ([picture(50, 50)], [picture(28, 28)], [picture(50, 50), picture(33, 33)]):
        parts = [{"type": "image_url", "image_url": {"url": address(one)}} for one in images]
        messages = [{"role": "user", "content": [{"type": "text", "text": "Look: "}, *parts]}]
        said = ours.chat(messages, max_tokens=20)
        assert len(said) == 20
        assert answer(eyes.model, messages, 20) == said
        answers.add(said)
    assert len(answers) == 3


@pytest.mark.network
def test_smollm2_with_eyes_says_the_same(tmp_path):
    """A LLaVA whose language model is a real one. Its eyes are random, so what it says of a picture is its own."""
    language, tokenizer, _ = open_gguf(fetch(SMOLLM2_135M_INSTRUCT), torch.float32)
    torch.manual_seed(0)
    stacks = {"encoders": {"image": EYES}, "connectors": {"image": MLP.Config()}}
    network = Fused.Config(backbone=language.config.backbone, **stacks).build().eval()
    network.backbone.load_state_dict(language.backbone.state_dict())
    network.connectors["image"].layers[1].weight.data *= 5
    out = tmp_path / "model.gguf"
    write_gguf(out, network, tokenizer, BASE.template, context=8192)
    ours, eyes = Model(BASE.replace(model=network.config), network, tokenizer), Eyes(out)
    answers = []
    for concept in (concepts()[0], concepts()[900]):
        drawing = decode(concept.key, "fluent")
        image = Image.new("RGBA", drawing.size, "white")
        image.alpha_composite(drawing)
        image = image.convert("RGB")
        messages = asked(image, "What do you see in this picture?")
        said = ours.chat(messages, max_tokens=24)
        assert answer(eyes.model, messages, 24) == said
        answers.append(said)
    print(f"\n{answers}")
    assert all(len(said) > 20 for said in answers)
