"""What a cache of outcomes must know of a search before it may lend one run's figures to another."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from evokd.errors import EvokdError
from evokd.evaluate.cache import Cached

if TYPE_CHECKING:
    from evokd.executor import Serial, Workers
    from evokd.problem import Problem
    from evokd.student_problem import StudentProblem


def kept_for_others(problem: Problem | StudentProblem, warn: Callable[[str], None]) -> Serial | Workers | Cached:
    """The problem's executor, with the cache that the configuration names before it.

    Raises:
        EvokdError: a cache that cannot be written, or a problem whose outcomes depend on code that no hash covers.
    """
    if not problem.config.cache:
        return problem.executor
    if problem.closed:
        raise EvokdError("--cache", "a search whose outcomes depend on named and hashed things alone", problem.closed)
    return Cached(problem.executor, Path(problem.config.cache), context(problem), warn)


def context(problem: Problem | StudentProblem) -> dict[str, str]:
    """All that an outcome depends on besides its job."""
    config = problem.config
    return {
        "task": config.task,
        "pair": problem.key,
        "student": str(problem.card["student"]),
        "space": problem.space_hash if config.task == "student" else "",
        "protocol": json.dumps(config.protocol.model_dump(), sort_keys=True),
        "fitness": config.fitness,
        "cache_gib": str(config.cache_gib),
        "versions": " ".join(f"{name} {version(name)}" for name in ("evokd", "torch", "numpy")),
        "code": code(),
        "machine": machine(config.device),
    }


@cache
def code() -> str:
    """Hash over evokd's own files: an edited operator is another operator."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def machine(device: str) -> str:
    """What arithmetic may depend on."""
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
