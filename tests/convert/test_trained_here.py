"""A LLaVA whose parts fit a published layout, made here with a prompt of ours, answers the same in transformers."""

import torch
import transformers
from multimodal import conversation, pictures

from sensorium.api import Model
from sensorium.connectors.mlp import MLP
from sensorium.convert.family import family_named
from sensorium.convert.published import write_published
from sensorium.encoders.vit import clip_vit_l14, stack
from sensorium.models.fused import Fused
from sensorium.nn.backbone import llama
from sensorium.recipes.llava import llava
from sensorium.template import Template
from sensorium.tokenizer import Tokenizer


def made():
    tower = clip_vit_l14(28).replace(backbone=stack(32, 3, 4, activation="quick_gelu", eps=1e-5, embed_norm=True))
    config = Fused.Config(encoders={"image": tower}, connectors={"image": MLP.Config()},
                          backbone=llama(vocab=259, width=48, depth=2, heads=4, hidden=96, tied=True))  # fmt: skip
    torch.manual_seed(0)
    network = config.build().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3 / parameter.shape[-1] ** 0.25)
    template = Template(media={"image": ("[", "]\n")}, system="Be brief.", asks=("Q: ", "?"))
    return llava("tiny").replace(model=config, template=template), network


def test_it_answers_the_same_in_transformers(tmp_path):
    recipe, network = made()
    ours = Model(recipe, network, Tokenizer.bytes())
    write_published(tmp_path / "out", family_named("llava"), network, ours.tokenizer, recipe.template)
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    assert theirs.config.text_config.vocab_size == 260  # the token that stands for a picture was not there
    processor = transformers.LlavaProcessor.from_pretrained(tmp_path / "out")
    for messages in (conversation("Hello"), conversation("What is it", pictures()[0]),
                     [*conversation("Which", *pictures()[:2]), {"role": "assistant", "content": [
                         {"type": "text", "text": "This."}]}, *conversation("And now")]):  # fmt: skip
        prompt = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        ids, logits = ours.logits(messages)
        assert len(ids) == prompt["input_ids"].shape[1]
        with torch.no_grad():
            expected = theirs(**prompt).logits[0]
            said = theirs.generate(**prompt, max_new_tokens=20, do_sample=False)
        torch.testing.assert_close(logits, expected[:, :259], rtol=0, atol=2e-4)
        answer = processor.tokenizer.decode(said[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        assert ours.chat(messages, max_tokens=20) == answer
