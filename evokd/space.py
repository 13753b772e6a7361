"""Space files: TOML that says what may be evolved. Data, no Python; found in a checkout and in an installed wheel alike."""

from __future__ import annotations

import hashlib
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from evokd.errors import EvokdError, closest, unknown
from evokd.losses.distances import DISTANCES
from evokd.losses.growth import LossSpace
from evokd.losses.language import POSITIONS
from evokd.losses.modules import MODULES
from evokd.losses.schedules import SCHEDULES
from evokd.losses.transforms import TRANSFORMS
from evokd.losses.weights import MODES

_PACKAGE = Path(__file__).parent
MAX_BYTES = 20_000
ROOTS = (_PACKAGE / "_spaces", _PACKAGE.parent / "spaces")
_TABLES = {
    "transforms": TRANSFORMS,
    "distances": DISTANCES,
    "modes": {"no": None, **MODES},
    "positions": {"features": None, "pre_relu": None, **POSITIONS},
}
_OPTIONAL = {"one_sided": TRANSFORMS, "schedules": SCHEDULES, "modules": MODULES}
_NUMBERS = {"values", "taus"}
_LIMITS = {"max_terms": (1, 8), "max_transforms": (0, 6)}


@dataclass(frozen=True)
class SpaceFile:
    """A space with the text it was read from."""

    space: LossSpace
    text: str

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]


def space_names(task: str = "distiller") -> list[str]:
    """Names of the shipped spaces."""
    return sorted({path.stem for root in ROOTS for path in (root / task).glob("*.toml")})


def read_space(name: str, task: str = "distiller") -> SpaceFile:
    """A shipped space by name, or a file by path.

    Raises:
        EvokdError: no such space, broken TOML, an unknown key or operator, a number out of range.
    """
    shipped = [root / task / f"{name}.toml" for root in ROOTS]
    path = next((p for p in [*shipped, Path(name)] if len(name) < 4096 and os.path.isfile(p)), None)
    if path is None:
        raise EvokdError("--space", "a space's name or an existing file", repr(name[:60]), closest(name[:60], space_names(task)))
    if path.stat().st_size > MAX_BYTES:
        raise EvokdError(str(path), f"at most {MAX_BYTES} bytes", f"{path.stat().st_size}")
    try:
        text = path.read_text(encoding="utf-8")
        return SpaceFile(_checked(path.stem, tomllib.loads(text), str(path)), text)
    except (ValueError, RecursionError) as error:
        raise EvokdError(str(path), "TOML", str(error)[:80]) from None


def _checked(name: str, raw: dict, where: str) -> LossSpace:
    known = {"task", *_TABLES, *_OPTIONAL, *_NUMBERS, *_LIMITS}
    for key in raw:
        if key not in known:
            raise unknown(where, "a key of a distiller space", key, known)
    if raw.get("task") != "distiller":
        raise EvokdError(f"{where}, task", "'distiller'", repr(raw.get("task"))[:60])
    fields: dict = {key: _names(raw, key, table, where) for key, table in _TABLES.items()}
    fields |= {key: _names(raw, key, table, where) for key, table in _OPTIONAL.items() if key in raw}
    for i, operator in enumerate(fields.get("one_sided", ())):
        if not TRANSFORMS[operator].keeps_shape:
            raise EvokdError(f"{where}, one_sided[{i}]", "an operator that keeps the shape", operator)
    fields |= {key: _grid(raw, key, where) for key in _NUMBERS}
    fields |= {key: _limit(raw, key, low, high, where) for key, (low, high) in _LIMITS.items()}
    return LossSpace(name=name, **fields)


def _names(raw: dict, key: str, table: dict, where: str) -> tuple[str, ...]:
    values = raw.get(key)
    if not isinstance(values, list) or (not values and key not in {"transforms", *_OPTIONAL}):
        raise EvokdError(f"{where}, {key}", "a list of names", repr(values)[:60])
    for i, value in enumerate(values):
        if not isinstance(value, str) or value not in table:
            raise unknown(f"{where}, {key}[{i}]", f"a name among {key}", str(value), table)
    return tuple(dict.fromkeys(values))


def _grid(raw: dict, key: str, where: str) -> tuple[float, ...]:
    values = raw.get(key)
    if not isinstance(values, list) or not values:
        raise EvokdError(f"{where}, {key}", "a list of numbers", repr(values)[:60])
    for i, value in enumerate(values):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value <= 1e6:
            raise EvokdError(f"{where}, {key}[{i}]", "a number in (0, 1e6]", repr(value)[:60])
    return tuple(float(v) for v in values)


def _limit(raw: dict, key: str, low: int, high: int, where: str) -> int:
    value = raw.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise EvokdError(f"{where}, {key}", f"an integer from {low} to {high}", repr(value)[:60])
    return value
