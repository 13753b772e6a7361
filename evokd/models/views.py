"""Augmented views: shifts and flips drawn once, as small integers, and applied where they are needed.

Views that are fixed in advance can be replayed for student and teacher alike, so the teacher need not run again.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def draw_views(draw: np.random.Generator, count: int, shift: int, flip: bool) -> Tensor:
    """(count,3) int64: vertical and horizontal offset in 0…2·shift, and whether to mirror."""
    offsets = draw.integers(0, 2 * shift + 1, (count, 2))
    mirror = draw.integers(0, 2 if flip else 1, (count, 1))
    return torch.from_numpy(np.concatenate([offsets, mirror], 1))


def augmented(images: Tensor, views: Tensor, shift: int) -> Tensor:
    """(N,C,H,W) images with the views (N,3) applied, zeros where the image was shifted away."""
    n, _, height, width = images.shape
    padded = F.pad(images, (shift,) * 4)
    columns = torch.arange(width, device=images.device).expand(n, width)
    columns = torch.where(views[:, 2:] > 0, width - 1 - columns, columns) + views[:, 1:2]
    rows = torch.arange(height, device=images.device) + views[:, :1]
    sample = torch.arange(n, device=images.device)[:, None, None]
    return padded[sample, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def plain_strides(images: Tensor) -> Tensor:
    """(N,C,H,W) with strides of its own: those of `augmented` grey images are legal too, but read as channels-last.

    Narrow convolutions cannot be trained on them (see `zoo.is_narrow`); for wide ones they choose other kernels, and so other last bits.
    """
    return images.clone(memory_format=torch.contiguous_format) if images.shape[1] == 1 else images


def normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 (N,C,H,W) → float32 (N,C,H,W) of mean 0 and deviation 1 per channel."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device).view(-1, 1, 1)
    offset = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=images.device).view(-1, 1, 1)
    return images * scale - offset


def draw_crops(draw: np.random.Generator, count: int, flip: bool) -> Tensor:
    """(count,5) float32: top, left, height and width of a crop as shares of the image, and whether to mirror.

    The random resized crop of GoogLeNet (Szegedy et al., CVPR 2015): 8 to 100 % of the area, sides 3:4 to 4:3; shares above 1 are cut.
    """
    area, ratio = draw.uniform(0.08, 1.0, count), np.exp(draw.uniform(np.log(3 / 4), np.log(4 / 3), count))
    height, width = (np.minimum(np.sqrt(share), 1.0) for share in (area / ratio, area * ratio))
    top, left = (draw.random(count) * (1 - side) for side in (height, width))
    mirror = draw.integers(0, 2 if flip else 1, count)
    return torch.from_numpy(np.stack([top, left, height, width, mirror], 1)).float()


def cropped(images: Tensor, crops: Tensor, size: int) -> Tensor:
    """(N,C,H,W) → float32 (N,C,size,size): the crops (N,5), resized bilinearly without smoothing; bytes stay on their scale 0…255."""
    top, left, height, width, mirror = crops.unbind(1)
    nought = torch.zeros_like(top)
    across = torch.where(mirror > 0, -width, width)
    rows = [torch.stack(row, 1) for row in ((across, nought, 2 * left + width - 1), (nought, height, 2 * top + height - 1))]
    grid = F.affine_grid(torch.stack(rows, 1), [len(images), images.shape[1], size, size], align_corners=False)
    return F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


def centre(images: Tensor, size: int) -> Tensor:
    """The middle (N,C,size,size) of larger images."""
    top, left = ((side - size) // 2 for side in images.shape[2:])
    return images[:, :, top : top + size, left : left + size]
