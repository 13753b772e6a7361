"""Distillation losses as trees: read, write, run, export."""

from importlib import import_module
from typing import Any

# Looked up on first use: reading a loss needs no torch program, running one no SymPy.
_HOME = {
    "Taps": "taps",
    "KNOWN": "known",
    "parse_loss": "language",
    "write_loss": "language",
    "compile_loss": "program",
    "DistillLoss": "program",
    "to_sympy": "formula",
    "to_latex": "formula",
    "to_torch_source": "source",
    "transform": "operators",
    "distance": "operators",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(name)
    return getattr(import_module(f"evokd.losses.{_HOME[name]}"), name)
