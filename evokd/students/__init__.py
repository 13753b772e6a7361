"""Student spaces by name or file: TOML that names a language and sets its options. Data, no Python."""

from __future__ import annotations

import tomllib
from importlib import import_module
from inspect import signature
from pathlib import Path

from evokd.errors import EvokdError, closest, unknown
from evokd.space import ROOTS, space_names
from evokd.students.space import StudentSpace

LANGUAGES = {
    name: f"evokd.students.{name}" for name in ("nas_bench_201", "nas_bench_macro", "resnet_s0", "resnet", "conv20", "mnasnet")
}


def read_student_space(name_or_file: str) -> StudentSpace:
    """A shipped space by name, or a file by path.

    Raises:
        EvokdError: no such space, broken TOML, an unknown language or option, an option's value that the language refuses.
    """
    return space_from(*read_definition(name_or_file))


def read_definition(name_or_file: str) -> tuple[dict, str]:
    """What the file of a space says, and its path.

    Raises:
        EvokdError: no such space, or broken TOML.
    """
    shipped = [root / "student" / f"{name_or_file}.toml" for root in ROOTS]
    path = next((p for p in [*shipped, Path(name_or_file)] if p.is_file()), None)
    if path is None:
        known = space_names("student")
        raise EvokdError("--space", "a space's name or an existing file", repr(name_or_file), closest(name_or_file, known))
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")), str(path)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EvokdError(str(path), "TOML", str(error)[:80]) from None


def space_from(raw: dict, where: str) -> StudentSpace:
    """The space of a definition, which `where` names in errors."""
    if raw.get("task") != "student":
        raise EvokdError(f"{where}, task", "'student'", repr(raw.get("task"))[:60])
    if raw.get("language") not in tuple(LANGUAGES):
        raise unknown(f"{where}, language", "a language of students", str(raw.get("language")), LANGUAGES)
    build = import_module(LANGUAGES[raw["language"]]).space
    options = {key: value for key, value in raw.items() if key not in ("task", "language")}
    for key in options:
        if key not in signature(build).parameters:
            known = ["task", "language", *signature(build).parameters]
            raise unknown(where, f"a key of a {raw['language']} space", key, known)
    try:
        return build(**options)
    except EvokdError as error:
        raise EvokdError(f"{where}, {error.where}", error.expected, error.got, error.hint) from None
