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


def normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 (N,C,H,W) → float32 (N,C,H,W) of mean 0 and deviation 1 per channel."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device).view(-1, 1, 1)
    offset = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=images.device).view(-1, 1, 1)
    return images * scale - offset
