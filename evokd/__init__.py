"""evokd evolves distillation losses and student architectures for any teacher–student pair."""

from typing import Any

__all__ = ["evolve_distiller"]


def __getattr__(name: str) -> Any:
    """Looked up on first use, so that `import evokd` and `--help` stay light."""
    if name != "evolve_distiller":
        raise AttributeError(name)
    from evokd.distiller import evolve_distiller

    return evolve_distiller
