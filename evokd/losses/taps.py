"""Taps: what a network shows to a distillation loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from evokd.errors import EvokdError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Taps:
    """Outputs of one network for one batch.

    Attributes:
        logits: (N,K), before the softmax.
        embedding: (N,D), the input of the classifier.
        features: each (N,C,H,W), one a stage, the last stage last.
        tokens: (N,M,C).
        attention: (N,heads,M,M), before the softmax.
        pre_relu: like `features`, before the stage's last activation.
        head: (weight (K,D), bias (K,)) of the classifier.
    """

    logits: Tensor
    embedding: Tensor | None = None
    features: tuple[Tensor, ...] = ()
    tokens: Tensor | None = None
    attention: Tensor | None = None
    pre_relu: tuple[Tensor, ...] = ()
    head: tuple[Tensor, Tensor] | None = None

    def at(self, position: str) -> Tensor:
        """The tap at a position: `logits`, `embedding`, `features[-1]` (the last stage), `pre_relu[-1]`, `tokens`, `attention`, or
        `teacher_head`, which reads the embedding.

        Raises:
            EvokdError: if the network shows nothing there.
        """
        name, index = split_position(position)
        value = getattr(self, "embedding" if name == "teacher_head" else name)
        if index is not None:
            value = value[index] if len(value) >= -index else None
        if name == "teacher_head" and self.head is None:
            value = None
        if value is None:
            raise EvokdError(
                f"position {position}",
                "a tap that the network shows",
                "nothing",
                "it has " + ", ".join(self.positions()),
            )
        return value

    def positions(self) -> list[str]:
        """All positions that hold a tap."""
        single = [name for name in ("logits", "embedding", "tokens", "attention") if getattr(self, name) is not None]
        head = ["teacher_head"] if self.head is not None and self.embedding is not None else []
        stages = [f"{name}[{-i}]" for name in ("features", "pre_relu") for i in range(1, len(getattr(self, name)) + 1)]
        return single + stages + head

    def map(self, change: Callable[[Tensor], Tensor]) -> Taps:
        """The same taps with every tensor changed: moved, sliced or detached."""

        def apply(value):
            if value is None:
                return None
            return tuple(change(v) for v in value) if isinstance(value, tuple) else change(value)

        return replace(self, **{f.name: apply(getattr(self, f.name)) for f in fields(self)})


def split_position(position: str) -> tuple[str, int | None]:
    """`features[-2]` → ("features", −2); `logits` → ("logits", None)."""
    name, bracket, rest = position.partition("[")
    return name, int(rest[:-1]) if bracket else None
