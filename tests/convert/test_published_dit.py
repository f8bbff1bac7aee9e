"""DiT pipelines of diffusers, opened here and written back: the same predictions, the same pictures, the same bits."""

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
from diffused import strong
from diffusers.pipelines.dit import pipeline_dit
from safetensors.torch import load_file
from typer.testing import CliRunner

import sensorium
from sensorium.cli import app
from sensorium.convert.dit import DIT
from sensorium.convert.published import open_published, write_published
from sensorium.diffusion.guider import Guider
from sensorium.diffusion.sampler import DDIM
from sensorium.encoders.transform import ImageTransform
from sensorium.infer.painting import canvas
from sensorium.models.latents import from_tokens, to_tokens
from sensorium.render import Renderer
from sensorium.sequence import Sequence

FILE = "diffusion_pytorch_model.safetensors"
VAE = {"block_out_channels": (16, 32), "down_block_types": ("DownEncoderBlock2D",) * 2, "norm_num_groups": 16,
       "up_block_types": ("UpDecoderBlock2D",) * 2, "sample_size": 16}  # fmt: skip
DIT_CONFIG = {"num_attention_heads": 4, "attention_head_dim": 8, "out_channels": 8, "num_layers": 3, "sample_size": 8}
CASES = {
    "as published": (DIT_CONFIG, VAE, {"clip_sample": False}),
    "odd": (
        {"num_attention_heads": 3, "attention_head_dim": 12, "in_channels": 16, "out_channels": 16, "num_layers": 2,
         "sample_size": 9, "patch_size": 3, "activation_fn": "geglu", "attention_bias": False,
         "norm_elementwise_affine": True, "norm_eps": 1e-3, "num_embeds_ada_norm": 17},
        {**VAE, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False, "scaling_factor": 0.8},
        {"clip_sample": False, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
         "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    ),
}  # fmt: skip
STEPS = 5
"""A divisor of 1000: otherwise theirs, where they are spaced "trailing", steps to other times than it visits."""
NAMES = {0: "tench, Tinca tinca", 7: "cock", 16: "great grey owl, great gray owl (Strix)"}


def pipeline(case, seed=0):
    """The case "odd" has embeddings of every block's own, the other one those of the first."""
    transformer, vae, scheduler = CASES[case]
    torch.manual_seed(seed)
    made = strong(diffusers.DiTTransformer2DModel(**transformer))
    if case == "as published":
        for block in made.transformer_blocks:
            block.norm1.emb.load_state_dict(made.transformer_blocks[0].norm1.emb.state_dict())
    pipe = diffusers.DiTPipeline(
        made, strong(diffusers.AutoencoderKL(**vae)), diffusers.DDIMScheduler(**scheduler), id2label=NAMES
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def changed(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def saved(pipe, folder):
    """Diffusers leaves out the names when it writes, and releases have them."""
    pipe.save_pretrained(folder)
    changed(folder / "model_index.json", id2label={str(number): name for number, name in NAMES.items()})
    return folder


@pytest.fixture(scope="module", params=CASES)
def both(request, tmp_path_factory):
    pipe = pipeline(request.param)
    folder = saved(pipe, tmp_path_factory.mktemp("published") / "dit")
    return folder, pipe, sensorium.load(folder, precision="fp32")


def asked(model, network, labels, side):
    """What the network is told of pictures of so many positions a side."""
    size = side * network.codec("image").config.spatial
    renderer = Renderer(model.tokenizer, model.recipe.template, network.config.plan)
    return Sequence.pack([renderer.render(canvas(label, size, size), items=False) for label in labels])


def tokens(latents, grid, patch):
    """(N, C, S, S) -> (N * tokens, P)."""
    return to_tokens(latents.permute(0, 2, 3, 1).flatten(0, 2), grid, patch)


def maps(values, grid, patch, count):
    """The inverse of `tokens`."""
    return from_tokens(values, grid, patch).view(count, grid.rows, grid.cols, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("larger", [False, True])
@pytest.mark.parametrize("nothing", [False, True])
def test_predictions_are_the_references(both, larger, nothing):
    _, pipe, model = both
    config, network = pipe.transformer.config, model.network
    side = config.sample_size
    if larger:
        side += 2 * config.patch_size
        codec = network.config.codecs["image"]
        other = codec.replace(transform=ImageTransform(size=side * codec.spatial))
        network = network.config.replace(codecs={"image": other}).build()
        network.load_state_dict(model.network.state_dict())
    labels, times = ["3", "cock", "great gray owl (Strix)"], torch.tensor([0, 431, 999])
    packed = asked(model, network, labels, side)
    latents = network.locate(packed)
    grid, patch = latents.grids[0], network.config.patch
    x = torch.randn(3, config.in_channels, side, side)
    numbers = torch.tensor([config.num_embeds_ada_norm] * 3 if nothing else [3, 7, 16])
    with torch.no_grad():
        wanted = pipe.transformer(x, timestep=times, class_labels=numbers).sample
        prompt = network.read(packed, torch.full((3,), nothing))
        found, variance = network.said(tokens(x, grid, patch), times.float(), latents, prompt)
    parts = [found] if variance is None else [found, variance]
    assert len(parts) == (config.out_channels or config.in_channels) // config.in_channels
    assert wanted.std() > 0.3
    made = torch.cat([maps(part, grid, patch, 3) for part in parts], dim=1)
    torch.testing.assert_close(made, wanted, rtol=0, atol=2e-4)


def test_sampling_from_the_same_noise_gives_the_references_pictures(both, monkeypatch):
    _, pipe, model = both
    network, labels = model.network, ["3", "Tinca tinca"]
    packed = asked(model, network, labels, pipe.transformer.config.sample_size)
    latents, patch = network.locate(packed), network.config.patch
    draws = [torch.Generator().manual_seed(5 + number) for number in range(len(labels))]
    sizes = zip(latents.lengths, draws)
    own = [torch.randn(length, network.config.channels, generator=draw) for length, draw in sizes]
    noise = maps(torch.cat(own), latents.grids[0], patch, len(labels))
    monkeypatch.setattr(pipeline_dit, "randn_tensor", lambda **_: noise)
    seen, made = [], []
    watched = (
        pipe.vae.decoder.register_forward_pre_hook(lambda _, given: seen.append(given[0])),
        network.codec("image").up.register_forward_pre_hook(lambda _, given: made.append(given[0][:, :, 0])),
    )
    spacing = pipe.scheduler.config.timestep_spacing
    assert network.config.sampler == DDIM(steps=50, spacing=spacing)
    for scale in (1.0, 4.0) if pipe.transformer.config.num_embeds_ada_norm == 1000 else (1.0,):
        # theirs takes class 1000 for none, however many there are
        wanted = pipe(class_labels=[3, 0], num_inference_steps=STEPS, guidance_scale=scale).images
        sampler = DDIM(steps=STEPS, spacing=spacing)
        found = model.paint(labels, sampler=sampler, guider=Guider(scale=scale), seed=5)
        theirs, ours = seen.pop(), torch.cat(made)
        made.clear()
        assert theirs.std() > 0.1
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4 * max(1.0, float(theirs.abs().max())))
        for [mine], other in zip(found, wanted, strict=True):
            assert mine.size == other.size
            assert np.asarray(other).std() > 10
            assert np.abs(np.asarray(mine, int) - np.asarray(other, int)).max() <= 1  # of 255: a rounding apart
    for hook in watched:
        hook.remove()


def test_what_is_written_back_is_the_same_to_the_last_bit_and_opens_there(both, tmp_path):
    folder, pipe, _ = both
    opened = open_published(folder)
    assert opened.model.config.apart == (len(pipe.transformer.transformer_blocks) == 2)
    write_published(tmp_path / "came", DIT, opened.model, opened.tokenizer, opened.template, opened.files)
    write_published(tmp_path / "own", DIT, opened.model, opened.tokenizer, opened.template)
    for written in (tmp_path / "came", tmp_path / "own"):
        for part in ("transformer", "vae"):
            before, after = load_file(folder / part / FILE), load_file(written / part / FILE)
            assert before.keys() == after.keys()
            assert all(torch.equal(before[name], after[name]) for name in before)
        again = diffusers.DiTPipeline.from_pretrained(written)
        again.set_progress_bar_config(disable=True)
        assert again.labels == pipe.labels
        asked_for = {"class_labels": [3], "num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "pt"}
        first, second = (one(**asked_for, generator=torch.Generator().manual_seed(3)).images for one in (pipe, again))
        torch.testing.assert_close(second, first, rtol=0, atol=0)
    for name in ("model_index", "transformer/config", "vae/config", "scheduler/scheduler_config"):
        before, after = (json.loads((one / f"{name}.json").read_text()) for one in (folder, tmp_path / "came"))
        if name == "vae/config":
            before["sample_size"] = 2 * pipe.transformer.config.sample_size  # pixels of what the pipeline paints
        assert before == after


def test_the_command_writes_a_pipeline_again(both, tmp_path):
    folder, _, _ = both
    ran = CliRunner().invoke(app, ["convert", str(folder), "--to", "hf", str(tmp_path / "out")])
    assert ran.exit_code == 0, ran.output
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {
        str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()
    } == names


def test_shards_are_read_as_one_file_is(both, tmp_path):
    folder, pipe, model = both
    shutil.copytree(folder, tmp_path / "dit")
    (tmp_path / "dit/transformer" / FILE).unlink()
    pipe.transformer.save_pretrained(tmp_path / "dit/transformer", max_shard_size="50KB")
    assert len(list((tmp_path / "dit/transformer").glob("*.safetensors"))) > 2
    sharded = open_published(tmp_path / "dit", torch.float32).model.state_dict()
    assert all(torch.equal(sharded[name], tensor) for name, tensor in model.network.state_dict().items())
