import numpy as np
import pytest
import torch

from evokd.models.views import augmented, draw_views, normalised, plain_strides


def rolled(image: np.ndarray, down: int, right: int, mirror: bool, shift: int) -> np.ndarray:
    """Roll, put nought where the roll came round, then mirror."""
    out = np.roll(image, (shift - down, shift - right), (1, 2))
    dy, dx = shift - down, shift - right
    out[:, : max(dy, 0)] = 0
    out[:, out.shape[1] + min(dy, 0) :] = 0
    out[:, :, : max(dx, 0)] = 0
    out[:, :, out.shape[2] + min(dx, 0) :] = 0
    return out[:, :, ::-1] if mirror else out


@pytest.mark.parametrize(("shape", "shift"), [((1, 8, 8), 1), ((3, 6, 9), 2), ((2, 5, 5), 0)])
def test_views_are_rolls_with_nought_at_the_edge(shape, shift):
    images = np.random.default_rng(0).integers(1, 256, (2, *shape)).astype(np.uint8)
    views = [(d, r, m) for d in range(2 * shift + 1) for r in range(2 * shift + 1) for m in (0, 1)]
    index = np.arange(len(views)) % 2
    found = augmented(torch.from_numpy(images[index]), torch.tensor(views), shift)
    assert found.dtype == torch.uint8
    for n, (down, right, mirror) in enumerate(views):
        assert np.array_equal(found[n].numpy(), rolled(images[index[n]], down, right, bool(mirror), shift)), (down, right, mirror)


def test_draws_fill_their_range_and_mirror_only_where_it_is_natural():
    draw = np.random.Generator(np.random.PCG64(0))
    views = draw_views(draw, 3000, 2, True)
    assert [sorted(set(views[:, k].tolist())) for k in range(3)] == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1]]
    assert np.bincount(views[:, 0]).min() > 500
    assert not draw_views(draw, 100, 2, False)[:, 2].any()
    assert not draw_views(draw, 100, 0, False)[:, :2].any()


def test_normalised_images_have_mean_nought_and_deviation_one():
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8)
    scaled = images.double() / 255
    mean, std = (tuple(v.tolist()) for v in (scaled.mean((0, 2, 3)), scaled.std((0, 2, 3))))
    found = normalised(images, mean, std)
    assert found.dtype == torch.float32
    assert torch.allclose(
        found.double(), (scaled - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1), atol=1e-5
    )
    assert found.mean((0, 2, 3)).abs().max() < 1e-4


def test_grey_images_have_plain_strides():
    """Strides (64, 1, 8, 1) are legal for one channel, but read as channels-last, which narrow convolutions cannot be trained in."""
    images = torch.randint(0, 255, (5, 1, 8, 8), dtype=torch.uint8)
    views = draw_views(np.random.default_rng(0), 5, 1, flip=False)
    shown = augmented(images, views, 1)
    assert plain_strides(shown).stride() == (64, 64, 8, 1)
    assert torch.equal(plain_strides(shown), shown)
