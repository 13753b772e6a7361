"""The validated configuration of a search: written whole into every run, hashed, and read back on resume."""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from evokd.errors import EvokdError, closest

# What may differ when a run goes on: how long it searches, where, and how it is watched.
MAY_CHANGE = frozenset(
    {"generations", "budget_evals", "budget_seconds", "budget_epochs", "budget_gpu_hours", "finals", "workers", "device", "out"}
    | {"tracking_uri", "children", "cache", "timeout_seconds", "memory_gib", "engine", "ray_address", "ray_gpus"}
)
TABLES = ("protocol", "funnel")  # of the file
ETA = 3  # of Hyperband (Li et al., JMLR 2018): a bracket's rung trains three times as long as the one before, for a third as many


class Protocol(BaseModel):
    """One short distillation: the same for every candidate and every baseline. What a result depends on besides the loss."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    transfer: int = Field(0, ge=0, description="training images used, stratified; 0 = all")
    rare_classes: tuple[int, ...] = Field((), description="classes that are rare in the transfer set; elsewhere all stay equal")
    rare_images: int = Field(3, ge=1, description="training images of each rare class")
    labels: int | None = Field(None, ge=0, description="training images whose label is known; None = all")
    steps: int = Field(200, ge=1, description="optimiser steps")
    batch: int = Field(64, ge=2, description="images a step")
    balanced: bool = Field(False, description="draw every class equally often, a remedy for rare classes")
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = Field(0.1, gt=0, description="peak of the one-cycle schedule")
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0, description="not on connectors, biases and batch norm")
    gamma: float = Field(1.0, ge=0, description="weight of the cross-entropy, averaged over the whole batch")
    views: int = Field(4, ge=1, description="fixed augmented views of each image, replayed from a bank")
    shift: int = Field(1, ge=0, description="greatest shift of a view, pixels")
    repeats: int = Field(1, ge=1, description="paired validation seeds a candidate")
    clip: float = Field(5.0, gt=0, description="gradient norm limit")
    channels_last: bool = Field(
        False,
        description="memory format of a student without narrow convolutions: often a fifth faster; the last bits depend on it",
    )


class Rung(NamedTuple):
    """A short training: its share of the steps, its number of seeds, and the share of candidates that go on."""

    steps: float
    seeds: int
    keep: float


class Funnel(BaseModel):
    """What a candidate must pass before its full training, the same for every controller."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    gates: tuple[Literal["static", "probe", "copies", "descent"], ...] = ("static", "probe", "copies", "descent")
    copies: float = Field(
        1.25, ge=1, description="losses of one gradient direction are copies if their sizes differ by at most this factor"
    )
    rungs: tuple[Rung, ...] = Field((), description="short trainings: share of the steps, seeds, share that goes on")
    tune: int = Field(0, ge=0, description="trials of CMA-ES on the numbers of every candidate that leaves the first rung")

    @field_validator("rungs")
    @classmethod
    def _in_range(cls, rungs: tuple) -> tuple:
        for steps, seeds, keep in rungs:
            if not (0 < steps <= 1 and seeds >= 1 and 0 < keep <= 1):
                raise ValueError("[share of the steps in (0, 1], seeds ≥ 1, share that goes on in (0, 1]]")
        return rungs


class Config(BaseModel):
    """A search from end to end."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    may_change: ClassVar[frozenset[str]] = MAY_CHANGE

    task: Literal["distiller"] = "distiller"
    space: str = "compact"
    teacher: str = "resnet14w32"
    student: str = "resnet8w4"
    data: str = "digits"
    teacher_taps: tuple[str, ...] = ()
    student_taps: tuple[str, ...] = ()
    controller: str = "evolution"
    policy: Literal["factorised", "lstm"] = Field("factorised", description="of reinforce and ppo")
    reward: Literal["fitness", "soft", "hard", "abs"] = Field(
        "fitness",
        description="what a controller raises: the fitness, or MnasNet's and TuNAS' trade of accuracy against reward_cost",
    )
    reward_cost: Literal["size"] = Field("size", description="what the reward trades accuracy against")
    reward_target: float | None = Field(None, gt=0, description="T, in the unit of reward_cost")
    fitness: Literal["accuracy", "ce", "gap", "gap_printed"] = "accuracy"
    generations: int = Field(6, ge=1)
    population: int = Field(12, ge=2)
    budget_evals: int | None = Field(None, ge=1, description="stop after so many trainings")
    budget_seconds: float | None = Field(None, gt=0, description="stop at the end of the generation in which it is spent")
    budget_epochs: float | None = Field(
        None, gt=0, description="stop at the end of the generation in which so many epochs are trained: steps × batch / images"
    )
    budget_gpu_hours: float | None = Field(None, gt=0, description="the same with hours of the device that trains")
    base: str | None = Field(None, description="a loss that is kept, to which terms are evolved: known name, text or loss.json")
    operators: tuple[str, ...] = Field((), description="users' own operators, path.py:function")
    seed_with: tuple[str, ...] = Field((), description="losses of the first generation: known names, texts or loss.json files")
    confirm: int = Field(5, ge=1, description="best candidates that are trained again on validation before the choice")
    confirm_repeats: int = Field(4, ge=1)
    finals: int = Field(10, ge=2, description="fresh paired seeds of the final comparison")
    baselines: bool = Field(True, description="random search and tuned KD with the same budget")
    teacher_epochs: int = Field(40, ge=1)
    cache_gib: float = Field(1.5, gt=0, description="cap on recorded teacher taps; above it the teacher runs live")
    workers: int = Field(
        0, ge=0, description="evaluating processes; 0 = one a core, at most 8; with Ray what the cluster has room for"
    )
    engine: Literal["processes", "ray"] = Field("processes", description="what workers live in: this machine, or a Ray cluster")
    ray_address: str | None = Field(None, description="of the cluster, or auto; RAY_ADDRESS if None, else a Ray of this machine")
    ray_gpus: float | None = Field(None, ge=0, description="GPUs of one worker, as 0.25; None = one where the device is cuda")
    timeout_seconds: float | None = Field(None, gt=0, description="limit of one evaluation; its worker is replaced")
    memory_gib: float | None = Field(None, gt=0, description="limit of a worker's resident memory; it is replaced")
    device: str = "auto"
    seed: int = Field(0, ge=0)
    out: str = "runs"
    tracking_uri: str | None = None
    children: Literal["elites", "all", "none"] = "elites"
    islands: int = Field(1, ge=1, description="populations side by side, whose best move on in a ring every second generation")
    alike: float | None = Field(
        None, gt=0, le=1, description="niches: at most two survivors whose gradients have this cosine or more"
    )
    lag: int = Field(0, ge=0, description="steady state: proposal k sees the results up to k − lag; 0 = by generations")
    shrink_every: int | None = Field(
        None, ge=1, description="generations after which the consistently worst operators are dropped"
    )
    cache: str | None = Field(None, description="folder of outcomes that runs share")
    protocol: Protocol = Protocol()
    funnel: Funnel = Funnel()

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """The rungs of the funnel that cost less than the full training, which needs none before it; under Hyperband its longest."""
        return self.brackets[0]

    @property
    def brackets(self) -> tuple[tuple[Rung, ...], ...]:
        """The rungs of one generation after the other: the funnel's in all, or those of Hyperband, the longest bracket first."""
        if self.controller == "tpe_hyperband":
            return tuple(tuple(Rung(ETA**-level, 1, 1 / ETA) for level in range(longest, 0, -1)) for longest in (2, 1, 0))
        return (tuple(rung for rung in self.funnel.rungs if rung.steps < 1 or rung.seeds < self.protocol.repeats),)

    @property
    def share(self) -> float:
        """Of the candidates that pass the gates, what is trained in full, at most."""
        return max(math.prod(rung.keep for rung in rungs) for rungs in self.brackets)

    def hash(self) -> str:
        """Twelve hexadecimal digits over everything that makes it this search and no other."""
        kept = self.model_dump(exclude=set(self.may_change))
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]

    def to_toml(self) -> str:
        """The whole configuration as TOML; None is left out."""
        flat = self.model_dump(exclude_none=True)
        tables = {name: flat.pop(name) for name in TABLES}
        lines = _lines(flat)
        for name, table in tables.items():
            lines += ["", f"[{name}]", *_lines(table)]
        return "\n".join([*lines, ""])


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{name} = {_toml(value)}" for name, value in table.items()]


def _toml(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return json.dumps(value, ensure_ascii=False)


class StudentConfig(Config):
    """A search for a student."""

    may_change: ClassVar[frozenset[str]] = MAY_CHANGE | {"tables"}

    task: Literal["student"] = "student"
    space: str = "digits"
    population: int = Field(24, ge=2)
    generations: int = Field(5, ge=1)
    evaluator: Literal["cascade", "score", "distill", "train", "shared", "tabular"] = "cascade"
    score: str = Field("diswot", description="of untrained students: a name, or loss: and a known name, a text or a loss.json")
    init: Literal["default", "kaiming", "gaussian"] = "kaiming"
    promote: float = Field(0.25, gt=0, le=1, description="share of a generation that the cascade distils")
    shared_epochs: int = Field(250, ge=1, description="of the supernet whose weights all cells share, with the evaluator shared")
    loss: str = Field("kd", description="the recipe of distillation: known name, text or loss.json")
    max_params: int | None = Field(None, ge=1)
    max_macs: int | None = Field(None, ge=1)
    max_latency_ms: float | None = Field(None, gt=0, description="milliseconds of one forward, by the published table")
    latency_device: str | None = Field(None, description="the table's device that latencies are of")
    reward_cost: Literal["latency_ms", "macs", "parameters"] = Field(
        "latency_ms", description="what the reward trades accuracy against; latency is that of latency_device"
    )
    prior: Literal["none", "parameters", "macs"] = Field(
        "none", description="evolution and local start from the greatest of 200 random students by this figure, which is free"
    )
    tables: str | None = Field(None, description="folder of published tables; EVOKD_DATA if None")


MODELS: dict[str, type[Config]] = {"distiller": Config, "student": StudentConfig}


def make_config(values: Mapping[str, Any], overrides: Iterable[str] = ()) -> Config:
    """Defaults of the data set, then `values`, then `key=value` overrides (`protocol.steps=300`).

    Raises:
        EvokdError: unknown key or a value out of range.
    """
    task = str(values.get("task", "distiller"))
    preset = _preset(task, values)
    merged: dict[str, Any] = {**preset, "task": task} | {name: dict(preset.get(name, {})) for name in TABLES}
    return _merged(merged, values, overrides)


def _preset(task: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a first run needs; with a table in place of training that depends on the space, limits on the space that they are for."""
    if task == "student" and values.get("evaluator") == "tabular":
        return TABULAR.get(str(values.get("space")), {})
    preset = PRESETS.get((task, str(values.get("data", "digits"))), {})
    if task == "student" and values.get("space", "digits") != "digits":
        return {name: value for name, value in preset.items() if not name.startswith("max_")}
    return preset


def resumed_config(
    folder: Path, task: str, changes: Mapping[str, Any], overrides: Iterable[str] = (), accept: bool = False
) -> Config:
    """The configuration with which a run goes on.

    Raises:
        EvokdError: not a run folder, a run of another task, or changes that would alter the search itself, unless they are accepted.
    """
    path = folder / "config.toml"
    old = read_config(path)
    if old.task != task:
        hint = f"go on with python -m evokd.evolve {old.task}"
        raise EvokdError("--resume", f"a search for a {task}", f"{folder}, one for a {old.task}", hint)
    new = change_config(old, {**changes, "out": str(folder.parent)}, overrides)
    drift = [] if accept else list(config_drift(old, new))
    if drift:
        expected, got = (", ".join(f"{each[0]} = {each[which]!r}" for each in drift) for which in (1, 2))
        hint = f"only {', '.join(sorted(old.may_change))} may change without --accept-drift"
        raise EvokdError("--resume", f"{expected} as in {path}", got, hint)
    return new


def config_drift(old: Config, new: Config) -> Iterator[tuple[str, Any, Any]]:
    """(key, old, new) of every setting that would make it another search."""
    pairs = [(old, new, ""), *((getattr(old, name), getattr(new, name), f"{name}.") for name in TABLES)]
    for model, other, prefix in pairs:
        for key in type(model).model_fields:
            if key not in old.may_change.union(TABLES) and getattr(model, key) != getattr(other, key):
                yield prefix + key, getattr(model, key), getattr(other, key)


def change_config(config: Config, values: Mapping[str, Any], overrides: Iterable[str] = ()) -> Config:
    """A configuration with some fields changed, validated like a new one."""
    return _merged(config.model_dump(), values, overrides)


def _merged(base: dict[str, Any], values: Mapping[str, Any], overrides: Iterable[str]) -> Config:
    for key, value in values.items():
        if key in TABLES:
            base[key].update(value)
        else:
            base[key] = value
    model = MODELS.get(base["task"], Config)
    for text in overrides:
        _override(base, text)
    try:
        return model.model_validate(base)
    except ValidationError as error:
        raise _explained(error) from None


def read_config(path: Path) -> Config:
    """The configuration of a run folder."""
    try:
        values = tomllib.loads(path.read_text())
        return MODELS.get(str(values.get("task")), Config).model_validate(values)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise EvokdError(str(path), "a readable configuration", str(error)[:80]) from None
    except ValidationError as error:
        raise _explained(error, str(path)) from None


def _override(merged: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals:
        raise EvokdError("-s", "key=value", repr(text), "for example -s protocol.steps=300")
    home = merged
    *parents, last = key.strip().split(".")
    for parent in parents:
        home = home.setdefault(parent, {})
        if not isinstance(home, dict):
            raise EvokdError("-s", "a setting", repr(key), "see --help")
    try:
        home[last] = tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        home[last] = value


def _explained(error: ValidationError, where: str = "") -> EvokdError:
    first = error.errors()[0]
    path = ".".join(map(str, first["loc"]))
    option = where or ("-s " + path if "." in path else "--" + path.replace("_", "-"))
    if first["type"] == "extra_forbidden":
        tables = {"protocol": Protocol, "funnel": Funnel}
        known = list(tables.get(path.partition(".")[0] if "." in path else "", StudentConfig).model_fields)
        return EvokdError(where or "-s", "a setting", repr(path), closest(path.rpartition(".")[2], known))
    message = first["msg"]
    for words in ("Input should be ", "Value error, "):
        message = message.removeprefix(words)
    return EvokdError(option, message, repr(first["input"])[:60])


# What a first run of a data set needs; everything may be overridden.
PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    # Odd digits are rare: three images each beside some eighty of each even one. The README says what was measured.
    ("distiller", "digits"): {
        "student": "conv3w8",
        "population": 28,
        "protocol": {"rare_classes": (1, 3, 5, 7, 9), "rare_images": 3, "steps": 150, "batch": 32, "gamma": 0.1, "repeats": 3},
        # Kendall's τ with the full training of 30 published losses, and of their better half: 0.59 and 0.32 after a fifth of the steps,
        # 0.80 and 0.48 after half of them, 0.87 and 0.71 after all with one seed. Searches with a rung at a fifth ended lower.
        "funnel": {"rungs": ((0.5, 1, 0.4), (1.0, 1, 0.5))},
    },
    # Small students on all training images; without a limit the largest would win.
    ("student", "digits"): {"max_params": 10_000, "protocol": {"steps": 200, "batch": 32, "gamma": 0.1}},
}

# The published protocol on a table with training times; elsewhere a part of the space, so that there is something to find.
TABULAR: dict[str, dict[str, Any]] = {
    "nas_bench_201": {"population": 10, "generations": 1000, "budget_seconds": 12_000.0, "prior": "parameters"},
    "nas_bench_macro": {"population": 10, "generations": 20},
    "resnet_s0": {"population": 4, "generations": 4},
}
