"""T2T-ViT-7 (Yuan et al., "Tokens-to-Token ViT", ICCV 2021), which timm lacks; it shows its tokens and attention.

Overlapping patches become tokens ("soft split", section 3.1), a light layer lets them exchange what they hold, and they are laid out as an
image again; after three splits seven narrow blocks work on the tokens. The light layers have Performer's linear attention (Choromanski et
al., ICLR 2021), as the paper's lite models. Keys are those of the released weights. Dropout is left out: it draws from torch's global
generator.
"""

from __future__ import annotations

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evokd.losses.taps import Taps
from evokd.models.tapping import thirds

WIDTH, DEPTH, HEADS, WIDEN = 256, 7, 4, 2  # of the blocks
TOKEN = 64  # width of tokens between splits
SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))  # kernel, stride and padding of each soft split
SIDE = 224  # pixels; also for small images, which Li et al. (ECCV 2022) enlarge for their transformers


class Performer(nn.Module):
    """(N,M,D) → (N,M,TOKEN): linear attention of one head, the values as shortcut, and a perceptron."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm1, self.kqv = nn.LayerNorm(inputs), nn.Linear(inputs, 3 * TOKEN)
        self.proj, self.norm2 = nn.Linear(TOKEN, TOKEN), nn.LayerNorm(TOKEN)
        self.mlp = nn.Sequential(nn.Linear(TOKEN, TOKEN), nn.GELU(), nn.Linear(TOKEN, TOKEN))
        directions = nn.init.orthogonal_(torch.empty(TOKEN // 2, TOKEN))
        self.register_buffer("w", directions * sqrt(len(directions)))

    def kernel(self, x: Tensor) -> Tensor:
        """Positive random features (N,M,R), whose inner products estimate exp(q·k): equation (5) of Performer."""
        x = x.float()
        return torch.exp(x @ self.w.T - x.square().sum(2, keepdim=True) / 2) / sqrt(len(self.w))

    def forward(self, x: Tensor) -> Tensor:
        keys, queries, values = self.kqv(self.norm1(x)).split(TOKEN, 2)
        keys, queries = self.kernel(keys), self.kernel(queries)
        mixed = queries @ (keys.transpose(1, 2) @ values.float()) / (queries @ keys.sum(1).unsqueeze(2) + 1e-8)
        x = values + self.proj(mixed)
        return x + self.mlp(self.norm2(x))


class Tokens(nn.Module):
    """(N,C,S,S) → tokens (N,(S/16)²,WIDTH)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first, second, third = (width * kernel**2 for width, (kernel, _, _) in zip((channels, TOKEN, TOKEN), SPLITS, strict=True))
        self.attention1, self.attention2, self.project = Performer(first), Performer(second), nn.Linear(third, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for split, layer in zip(SPLITS, (self.attention1, self.attention2, self.project), strict=True):
            tokens = layer(F.unfold(x, split[0], padding=split[2], stride=split[1]).transpose(1, 2))
            side = x.shape[2] // split[1]
            x = tokens.transpose(1, 2).unflatten(2, (side, side))
        return tokens


class Attention(nn.Module):
    """(N,M,WIDTH) → the same, and the scores (N,HEADS,M,M) before their softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        queries, keys, values = self.qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        scores = queries @ keys.transpose(2, 3) / sqrt(WIDTH // HEADS)
        return self.proj((scores.softmax(3) @ values).transpose(1, 2).flatten(2)), scores


class Perceptron(nn.Module):
    """(N,M,WIDTH) → the same."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, WIDEN * WIDTH), nn.Linear(WIDEN * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A transformer's block, norms first; its scores beside its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = nn.LayerNorm(WIDTH), Attention(), nn.LayerNorm(WIDTH), Perceptron()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        change, scores = self.attn(self.norm1(x))
        x = x + change
        return x + self.mlp(self.norm2(x)), scores


class T2TViT(nn.Module):
    """(N,C,H,W) → `Taps`, images resized to S×S.

    `tokens` (N,M,WIDTH) are normalised, `features` raw after each third of the blocks, as maps (N,WIDTH,S/16,S/16), `attention`
    (N,HEADS,M,M) is of the last block; none has the class token, whose normalised value is the `embedding`.

    Args:
        classes: K.
        channels: C.
        side: S, a multiple of 16.
    """

    def __init__(self, classes: int = 1000, channels: int = 3, side: int = SIDE) -> None:
        super().__init__()
        self.side, self.after = side, thirds(DEPTH)
        self.tokens_to_token = Tokens(channels)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.register_buffer("pos_embed", sinusoids((side // 16) ** 2 + 1, WIDTH).unsqueeze(0))
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, images: Tensor) -> Taps:
        if images.shape[2:] != (self.side, self.side):
            images = F.interpolate(images, (self.side, self.side), mode="bilinear", align_corners=False)
        tokens = self.tokens_to_token(images)
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1) + self.pos_embed
        maps = []
        for number, block in enumerate(self.blocks):
            x, scores = block(x)
            if number in self.after:
                maps.append(x[:, 1:].transpose(1, 2).unflatten(2, (self.side // 16, -1)))
        x = self.norm(x)
        head = (self.head.weight, self.head.bias)
        return Taps(self.head(x[:, 0]), x[:, 0], tuple(maps), tokens=x[:, 1:], attention=scores[:, :, 1:, 1:], head=head)


def sinusoids(count: int, width: int) -> Tensor:
    """Positions (count,width) as waves (Vaswani et al., NeurIPS 2017, section 3.5)."""
    places, waves = torch.arange(count).double()[:, None], torch.arange(0, width, 2).double()
    angles = places / 10_000 ** (waves / width)
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1).float()
