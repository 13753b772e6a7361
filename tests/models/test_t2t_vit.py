"""T2T-ViT-7 against a hand count, the published sizes, and the formulas of its two papers."""

from math import sqrt

import pytest
import torch
import torch.nn.functional as F

from evokd.errors import EvokdError
from evokd.models.t2t_vit import Attention, Performer, T2TViT, Tokens, sinusoids
from evokd.models.zoo import build, parameters


def linear(inputs, outputs, bias=1):
    return inputs * outputs + bias * outputs


def performer(inputs):
    """Keys, queries, values; projection; two norms; a perceptron of two layers."""
    return linear(inputs, 3 * 64) + linear(64, 64) + 2 * inputs + 2 * 64 + 2 * linear(64, 64)


def test_the_parameter_count_is_the_published_one():
    """4.3 M in the paper's table 3, its repository's first README 4.2 M: what is trained, and with it the positions and directions that
    are not, lie between."""
    network = build("t2t_vit_7", 1000, 3, 0)
    block = 2 * 2 * 256 + linear(256, 768, 0) + linear(256, 256) + linear(256, 512) + linear(512, 256)
    counted = performer(3 * 49) + performer(9 * 64) + linear(9 * 64, 256) + 256 + 7 * block + 512 + linear(256, 1000)
    fixed = 197 * 256 + 2 * 32 * 64
    assert parameters(network) == counted == 4_255_694
    assert sum(value.numel() for value in network.state_dict().values()) == counted + fixed == 4_310_222
    assert (int(counted / 1e5), round((counted + fixed) / 1e5)) == (42, 43)


def test_linear_attention_is_a_mean_of_values_by_kernels_of_pairs():
    """The quadratic form that Performer's order of products avoids (its equations 3 to 5)."""
    layer, x = Performer(12), torch.randn(1, 5, 12)
    layer.kqv.weight.data *= 0.2  # as small as the network starts with, where the guard against division by nought is nothing
    keys, queries, values = layer.kqv(layer.norm1(x))[0].chunk(3, 1)

    def features(v):
        return torch.stack([torch.exp(w @ v - v @ v / 2) / sqrt(32) for w in layer.w])

    kernels = torch.stack([torch.stack([features(q) @ features(k) for k in keys]) for q in queries])
    y = values + layer.proj((kernels[:, :, None] * values).sum(1) / kernels.sum(1, keepdim=True))
    assert torch.allclose(layer(x)[0], y + layer.mlp(layer.norm2(y)), atol=1e-4)


def test_tokens_come_from_overlapping_patches_laid_out_as_an_image():
    layer = Tokens(3)
    with torch.no_grad():
        assert layer(torch.zeros(2, 3, 224, 224)).shape == (2, 196, 256)
        image = torch.zeros(1, 3, 64, 64)
        image[..., 40:, 40:] = 1.0
        changed = (layer(image) - layer(torch.zeros(1, 3, 64, 64))).abs().sum(2).view(4, 4)
    assert changed[3, 3] > 0


def test_attention_is_the_softmax_of_its_scores():
    layer, x = Attention(), torch.randn(2, 6, 256)
    out, scores = layer(x)
    q, k, v = (F.linear(x, w).view(2, 6, 4, 64).transpose(1, 2) for w in layer.qkv.weight.chunk(3))
    assert torch.allclose(scores, q @ k.mT / 8, atol=1e-4)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 6, 256)
    assert torch.allclose(out, layer.proj(mixed), atol=1e-5)


def test_positions_are_vaswanis_waves():
    found = sinusoids(9, 6)
    assert found[3, 2].item() == pytest.approx(torch.sin(torch.tensor(3 / 10_000 ** (2 / 6))).item())
    assert found[3, 3].item() == pytest.approx(torch.cos(torch.tensor(3 / 10_000 ** (2 / 6))).item())


@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 8)])
def test_small_images_are_enlarged_and_the_taps_are_of_patches(channels, side):
    network, images = T2TViT(7, channels, 48).eval(), torch.randn(2, channels, side, side)
    with torch.no_grad():
        taps = network(images)
        large = F.interpolate(images, (48, 48), mode="bilinear", align_corners=False)
        assert torch.equal(network(large).logits, taps.logits)
    assert (taps.logits.shape, taps.embedding.shape) == ((2, 7), (2, 256))
    assert (taps.tokens.shape, taps.attention.shape) == ((2, 9, 256), (2, 4, 9, 9))
    assert [tuple(f.shape) for f in taps.features] == [(2, 256, 3, 3)] * 3
    assert torch.allclose(network.norm(taps.features[-1].flatten(2).transpose(1, 2)), taps.tokens, atol=1e-5)
    assert torch.allclose(F.linear(taps.embedding, *taps.head), taps.logits, atol=1e-5)


@pytest.mark.parametrize("side", ["40", "16", "2048", "0"])
def test_other_sides_are_refused(side):
    with pytest.raises(EvokdError, match="--student: expected t2t_vit_7@SIDE, a multiple of 16 from 32 to 1024"):
        build(f"t2t_vit_7@{side}", 10, 3, 0)
