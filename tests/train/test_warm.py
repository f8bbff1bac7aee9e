"""Ridge regression is least squares; the start it gives a connector is what the recipe asks for."""

import pytest
import torch
from tiny_training import Pictures, tiny_model, tiny_recipe, tiny_stage

from sensorium.connectors.mlp import MLP
from sensorium.connectors.pool import AveragePool
from sensorium.connectors.pyramid import Pyramid
from sensorium.connectors.qformer import QFormer
from sensorium.connectors.resampler import Resampler
from sensorium.errors import UserError
from sensorium.nn.norm import Norm
from sensorium.nn.part import Features, Grid
from sensorium.train.build import build_model, tokenizer_of
from sensorium.train.features import FrozenEncoder
from sensorium.train.warm import CentredStart, Ridge, RidgeStart, centred_start, ridge_start


def rows(count, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator) * 2 + 3
    return x, x @ torch.randn(6, 3, generator=generator) + torch.randn(count, 3, generator=generator)


def test_without_a_penalty_it_is_ordinary_least_squares():
    x, y = rows(200, 0)
    fit = Ridge(6, 3)
    for start in range(0, 200, 64):
        fit.add(x[start : start + 64], y[start : start + 64])
    slope, intercept = fit.solve(0.0)
    design = torch.cat([x, torch.ones(200, 1)], 1).double()
    expected = torch.linalg.lstsq(design, y.double()).solution.float()
    torch.testing.assert_close(slope, expected[:6], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(intercept, expected[6], rtol=1e-3, atol=1e-3)


def test_with_a_penalty_it_is_least_squares_with_rows_added():
    """A penalty p on the slope is sqrt(n p) I appended to the centred design, with zeros as targets."""
    x, y = rows(100, 1)
    fit = Ridge(6, 3)
    fit.add(x, y)
    slope, intercept = fit.solve(0.3)
    centred = (x - x.mean(0)).double()
    penalty = 0.3 * centred.pow(2).mean(0).mean()
    design = torch.cat([centred, (100 * penalty).sqrt() * torch.eye(6, dtype=torch.float64)])
    target = torch.cat([(y - y.mean(0)).double(), torch.zeros(6, 3, dtype=torch.float64)])
    expected = torch.linalg.lstsq(design, target).solution.float()
    torch.testing.assert_close(slope, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(intercept, y.mean(0) - x.mean(0) @ slope, rtol=1e-4, atol=1e-4)
    gained, _ = fit.solve(0.3, gain=2.0)
    torch.testing.assert_close(gained, 2 * slope)


def started(connector, **options):
    recipe = tiny_recipe(tiny_stage(), model=tiny_model(connectors={"image": connector}))
    model = build_model(recipe)
    frozen = FrozenEncoder(model.encoders["image"].eval(), None, torch.float32)
    ridge_start(RidgeStart(data=Pictures(), **options), model, tokenizer_of(recipe), frozen)
    return model, frozen


@pytest.mark.parametrize(
    "connector",
    [MLP.Config(depth=1), MLP.Config(depth=1, bias=False), AveragePool.Config(inner=MLP.Config(depth=1))],
    ids=["linear", "no bias", "pooled"],
)
def test_the_connector_is_nearer_to_the_words_than_it_was(connector):
    model, frozen = started(connector)
    untouched = build_model(tiny_recipe(tiny_stage(), model=tiny_model(connectors={"image": connector})))
    source, tokenizer = Pictures().build(), tokenizer_of(tiny_recipe())
    errors = {"fitted": 0.0, "mean": 0.0, "random": 0.0}
    words = model.backbone.embed.weight.detach()
    texts = [" " + source[i].segments[-1].data for i in range(24)]  # the answer: what is said about the picture
    targets = [words[tokenizer.encode(text)].mean(0) for text in texts]
    mean = torch.stack(targets).mean(0)
    with torch.no_grad():
        for index, target in enumerate(targets):
            items = frozen.complete([frozen.load(source[index].segments[0].data)])
            features = frozen.encoder(items)
            copy = Features(features.values.clone(), features.grids)
            errors["fitted"] += float((model.connectors["image"](features) - target).pow(2).mean())
            errors["random"] += float((untouched.connectors["image"](copy) - target).pow(2).mean())
            errors["mean"] += float((mean - target).pow(2).mean())
    assert errors["fitted"] < errors["random"]
    if connector.tag() != "connectors.mlp.MLP" or connector.bias:
        assert errors["fitted"] < errors["mean"]  # the best constant: it reads something in the pictures


def test_a_strong_penalty_leaves_the_mean_word():
    model, _ = started(MLP.Config(depth=1), ridge=1e9)
    layer = model.connectors["image"].layers[0]
    assert float(layer.weight.detach().abs().max()) < 1e-6
    assert float(layer.bias.detach().abs().max()) > 0


def test_words_are_as_the_blocks_read_them():
    """Where embeddings are multiplied by the root of the width, so is what the connector is fitted to."""
    found = []
    for scaled in (False, True):
        backbone = tiny_model().backbone.replace(scaled_embed=scaled)
        recipe = tiny_recipe(tiny_stage(), model=tiny_model(backbone=backbone))
        model = build_model(recipe)
        frozen = FrozenEncoder(model.encoders["image"].eval(), None, torch.float32)
        ridge_start(RidgeStart(data=Pictures(), ridge=1e9), model, tokenizer_of(recipe), frozen)
        found.append(model.connectors["image"].layers[0].bias.detach())
    torch.testing.assert_close(found[1], model.backbone.config.width**0.5 * found[0])


@pytest.mark.parametrize(
    "connector", [MLP.Config(depth=2), MLP.Config(depth=1, norm=True), AveragePool.Config(inner=MLP.Config(depth=2))]
)
def test_a_connector_that_is_not_one_linear_layer_is_an_error(connector):
    with pytest.raises(UserError, match="one linear layer"):
        started(connector)


def test_rows_of_a_parameter_start_as_the_words_for_them():
    connector = Pyramid.Config(levels=(2, 1), placed=True, inner=MLP.Config(depth=1))
    phrases = ("top left", "top right", "bottom left", "bottom right", "picture")
    model, _ = started(connector, tokens="last", words={"place": phrases})
    words, tokenizer = model.backbone.embed.weight.detach(), tokenizer_of(tiny_recipe())
    expected = torch.stack([words[tokenizer.encode(" " + phrase)].mean(0) for phrase in phrases])
    torch.testing.assert_close(model.connectors["image"].place.detach(), expected - expected.mean(0))
    with pytest.raises(UserError, match=r"2 phrases for 'place'.*\(5, "):
        started(connector, words={"place": phrases[:2]})
    with pytest.raises(UserError, match="'plaice'"):
        started(connector, words={"plaice": phrases})


def hidden(connector, features, layer):
    seen = []
    hook = connector.get_submodule(layer).register_forward_hook(lambda *passed: seen.append(passed[2].flatten(0, -2)))
    with torch.no_grad():
        connector(features)
    hook.remove()
    return torch.cat(seen)


@pytest.mark.parametrize(
    ("connector", "layer"),
    [
        (MLP.Config(), "layers.0"),
        (MLP.Config(entry=Norm.Config(kind="layer")), "entry"),
        (AveragePool.Config(), "inner.layers.0"),
        (Resampler.Config(latents=3, width=8, depth=1, heads=2, head_width=4), "enter"),
        (Resampler.Config(latents=3, depth=1, heads=2, head_width=4), "layers.0.norm_features"),
        (QFormer.Config(queries=3, norm=True, vocab=0, text_ffn=False, width=8, depth=1, heads=2, hidden=8), "norm"),
    ],
    ids=["mlp", "normed mlp", "pooled", "resampler", "resampler as wide", "q-former"],
)
def test_what_a_connector_says_first_varies_around_zero(connector, layer):
    model, frozen = started_with(connector)
    source = Pictures().build()
    start = CentredStart(count=len(source))
    with torch.no_grad():
        items = frozen.complete([frozen.load(source[i].segments[0].data) for i in range(len(source))])
        features = frozen.encoder(items)
    features = Features(features.values + 3, features.grids)
    before = {name: value.clone() for name, value in model.named_parameters()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sensorium.train.warm._encoded", lambda items, _: features)
        patch.setattr(frozen, "load", lambda media: media)
        centred_start(start.replace(batch=len(source)), model, frozen, Pictures())
    values = hidden(model.connectors["image"], features, layer)
    assert values.mean(0).abs().max() < 1e-4
    assert values.square().mean() == pytest.approx(1, rel=1e-3)
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {f"connectors.image.{layer}.{own}" for own in ("weight", "bias")}
    assert all(param.requires_grad for param in model.parameters())


def test_a_centred_start_says_what_it_cannot_centre():
    model, frozen = started_with(MLP.Config())
    with pytest.raises(UserError, match="3 rows of the stage's data have 1"):
        centred_start(CentredStart(), model, frozen, Pictures(count=3, broken=(0,), unreadable=(2,)))
    for layer, said in (("absent", "no layer 'absent'"), ("", "has a bias")):
        model, frozen = started_with(MLP.Config(bias=False))
        with pytest.raises(UserError, match=said):
            centred_start(CentredStart(layer=layer), model, frozen, Pictures())


def test_a_centred_start_wants_pictures_that_differ(monkeypatch):
    model, frozen = started_with(MLP.Config())
    width = model.encoders["image"].config.width
    same = Features(torch.ones(8, width), [Grid(2, 2)] * 2)
    monkeypatch.setattr("sensorium.train.warm._encoded", lambda items, _: same)
    with pytest.raises(UserError, match=r"images that differ; .* has variance 0"):
        centred_start(CentredStart(count=2), model, frozen, Pictures())


def started_with(connector):
    model = build_model(tiny_recipe(tiny_stage(), model=tiny_model(connectors={"image": connector})))
    return model, FrozenEncoder(model.encoders["image"].eval(), None, torch.float32)
