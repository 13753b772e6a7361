"""evokd evolves distillation losses and student architectures for any teacher–student pair."""

from typing import Any

__all__ = ["evolve_distiller", "evolve_student"]


def __getattr__(name: str) -> Any:
    """Looked up on first use, so that `import evokd` and `--help` stay light."""
    if name == "evolve_distiller":
        from evokd.distiller import evolve_distiller

        return evolve_distiller
    if name == "evolve_student":
        from evokd.student import evolve_student

        return evolve_student
    raise AttributeError(name)
