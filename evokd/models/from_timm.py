"""timm's networks by name, the only door to that package; vision transformers show their tokens and maps."""

from __future__ import annotations

import re
from importlib import import_module

from torch import Tensor, nn

from evokd.errors import EvokdError
from evokd.losses.taps import Taps
from evokd.models.tapping import thirds

SHORT = {"deit_tiny": "deit_tiny_patch16_224"}  # as papers call it
_FORM = re.compile(r"([\w.]+)(?:@(\d+)(?:p(\d+))?)?", re.ASCII)


class Transformer(nn.Module):
    """A vision transformer of timm that returns `Taps`.

    `tokens` (N,M,C) are the normalised patch tokens without class and distillation tokens, `features` the raw ones after each third of
    the blocks as maps (N,C,H,W), `embedding` (N,C) what the classifier is given, `attention` (N,heads,M,M) the scores of the last block
    before their softmax, likewise of patches alone: computed again, for timm fuses them, and only where it is timm's plain attention.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.after = network, thirds(len(network.blocks))

    def forward(self, images: Tensor) -> Taps:
        network, seen = self.network, []
        last = getattr(network.blocks[-1], "attn", None)
        handle = last.register_forward_pre_hook(lambda module, args: seen.append(args[0])) if hasattr(last, "qkv") else None
        out, maps = network.forward_intermediates(images, indices=self.after)
        if handle:
            handle.remove()
        first = network.num_prefix_tokens
        scores = _scores(last, seen[0])[:, :, first:, first:] if seen else None
        embedding = network.forward_head(out, pre_logits=True)
        head = (network.head.weight, network.head.bias)
        return Taps(network.head(embedding), embedding, tuple(maps), tokens=out[:, first:], attention=scores, head=head)


def _scores(attention: nn.Module, x: Tensor) -> Tensor:
    """(N,heads,M,M) of tokens (N,M,C)."""
    queries, keys, _ = attention.qkv(x).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return attention.q_norm(queries) @ attention.k_norm(keys).transpose(2, 3) * attention.scale


def build_timm(name: str, classes: int, channels: int, where: str = "--student") -> nn.Module:
    """A freshly initialised network; nothing is downloaded.

    Args:
        name: of timm, with `@SIDE` or `@SIDEpPATCH` for images and patches of other sizes than the name's.
        classes: K.
        channels: C of the images.
        where: option named in errors.

    Raises:
        EvokdError: timm is not installed, or has no such network or size.
    """
    found = _FORM.fullmatch(name)
    if not found:
        raise EvokdError(where, "timm:NAME, timm:NAME@SIDE or timm:NAME@SIDEpPATCH", repr(f"timm:{name}"))
    sizes = {key: int(value) for key, value in (("img_size", found[2]), ("patch_size", found[3])) if value}
    try:
        create = import_module("timm").create_model
    except ImportError as error:
        raise EvokdError(where, "the package timm", f"{error}"[:80], 'pip install "evokd[timm]"') from None
    try:
        network = create(SHORT.get(found[1], found[1]), pretrained=False, num_classes=classes, in_chans=channels, **sizes)
    except (RuntimeError, ValueError, TypeError, AssertionError, KeyError) as error:
        raise EvokdError(where, "a network of timm", repr(f"timm:{name}"), str(error).splitlines()[0][:80]) from None
    plain = not hasattr(network, "num_prefix_tokens") or not isinstance(getattr(network, "head", None), nn.Linear)
    return network if plain or not hasattr(network, "forward_intermediates") else Transformer(network)
