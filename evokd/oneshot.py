"""A one-shot search from end to end: train a supernet, read the cell off it, distil the cell as every search for a student does.

RSPS, GDAS and DARTS stand outside the contract of controllers: one training is the whole search. What they find is told under the very
protocol of `evokd.evolve student`, with its final seeds, so that the numbers stand beside each other.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evokd.checkpoint import write_whole
from evokd.config import StudentConfig
from evokd.data import Data, read_data
from evokd.errors import EvokdError, unknown
from evokd.evaluate.shared_weights import SharedWeights, judge_on
from evokd.evaluate.students import StudentJob
from evokd.finals import Entry, Row, interval
from evokd.folder import new_folder
from evokd.genome.codec import to_names
from evokd.mirror import VERBATIM, accuracy_of, final_of, params_of, tags_of
from evokd.problem import check_writable, pick_device, transfer_set
from evokd.report.terminal import Terminal
from evokd.run import evaluation_seeds
from evokd.search.random import RandomSearch
from evokd.store import Generation
from evokd.streams import stream
from evokd.student_problem import StudentProblem, open_student_problem
from evokd.students import read_student_space
from evokd.students.nas_bench_201 import is_dead, read
from evokd.students.oneshot import METHODS, Recipe, search, supernet
from evokd.students.space import Genome, StudentSpace
from evokd.tracker import open_tracker

VERSION = 1
UNDECIDED = 0.05  # above the 0.2 of five operators alike, on the mean edge


def run(
    config: StudentConfig, recipe: Recipe, samples: int, terminal: Terminal, *, finals: bool = True, download: bool = False
) -> Path:  # fmt: skip
    """One search in a folder of its own, which gets `result.json`.

    Args:
        config: of the distillation at the end; its controller names the method.
        recipe: of the supernet.
        samples: cells that RSPS ranks.
        terminal: what is said.
        finals: distil the found cell with the final seeds; without them no teacher is needed.
        download: allow torchvision to fetch data.

    Raises:
        EvokdError: an unknown method, a space that cannot share weights, limits (which no gradient keeps), whatever the finals refuse.
    """
    method, space = _checked(config)
    problem = open_student_problem(config, terminal.status, download) if finals else None
    try:
        data = problem.data if problem else transfer_set(read_data(config.data, download), config.protocol)
        check_writable(Path(config.out))
        folder = new_folder(config, data.name, f'task = "student"\nspace = {json.dumps(config.space)}\n')
        terminal.say(f"evokd · {data.name} ({len(data.train)} images) · {method}, {_size(space)}\nrun {folder}\n")
        with _mirrored(config, recipe, folder, data.name, terminal.warn) as tell:
            result = _searched(method, space, data, recipe, samples, config, terminal)
            _write(folder, result)  # what the finals cost must not cost the search
            if problem:
                terminal.status(f"finals: {config.finals} fresh seeds, told on test")
                result["distilled"] = _distilled(problem, space.read(result["architecture"]), terminal)
                _write(folder, result)
            tell(result)
    finally:
        terminal.done()
        if problem:
            problem.executor.close()
    terminal.say("\n".join([*told(result), f"{folder / 'result.json'}"]))
    return folder


@contextmanager
def _mirrored(
    config: StudentConfig, recipe: Recipe, folder: Path, data: str, warn: Callable[[str], None]
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """One search in MLflow; yields what takes its result: the supernet's curve, the cell, and what it reaches on test."""
    tracker = open_tracker(config.tracking_uri, folder.parent, f"oneshot/{data}", warn)
    params = params_of(config, {}) | {f"recipe.{name}": value for name, value in asdict(recipe).items()}
    tags = tags_of(config, folder) | {"evokd.kind": "oneshot", "evokd.state": "going"}
    tracker.start(folder.name, params, tags, [folder / name for name in VERBATIM])

    def tell(result: Mapping[str, Any]) -> None:
        name, values = f"{config.controller}, distilled", tuple(result.get("distilled", ()))
        rows = [Row(Entry(name, result["architecture"]), values)] if values else []
        curve = [("train_ce", value, step) for step, value in result["curve"]]
        tracker.generation(Generation(0, curve, {"evokd.best": result["architecture"]}))
        for row in rows:
            tracker.child(final_of(row))
        tracker.files([folder / "result.json"])
        figures = {name: result[name] for name in ("parameters", "depth", "search_seconds", "shared_accuracy")}
        tracker.finish("FINISHED", figures | accuracy_of(rows))

    with tracker.until_the_end():
        yield tell


def _write(folder: Path, result: Mapping[str, Any]) -> None:
    write_whole(folder / "result.json", json.dumps(result, indent=1, allow_nan=False) + "\n")


def _checked(config: StudentConfig) -> tuple[str, StudentSpace]:
    if config.controller not in METHODS:
        raise unknown("evokd oneshot", "a one-shot method", config.controller, METHODS)
    space = read_student_space(config.space)
    supernet(space, 2, 1, 0)  # refuses a space that cannot share weights
    limits = {"max_params": config.max_params, "max_macs": config.max_macs, "max_latency_ms": config.max_latency_ms}
    for name, value in limits.items():
        if value is not None:
            raise EvokdError(f"-s {name}", "no limit, for one-shot searches keep none", str(value), "evokd.evolve student does")
    return config.controller, space


def _size(space: StudentSpace) -> str:
    width, cells = space.network.args
    return f"supernet of {space.name} with {width} channels and {cells} cells a stage"


def _searched(
    method: str, space: StudentSpace, data: Data, recipe: Recipe, samples: int, config: StudentConfig, terminal: Terminal
) -> dict[str, Any]:  # fmt: skip
    """What result.json says of the search; RSPS's ranking belongs to its seconds."""
    device = pick_device(config.device)
    found = search(method, space, data, recipe, config.seed, device, terminal.status)
    judge, start = judge_on(found.network, space, data, device), time.perf_counter()
    if found.genome is None:
        terminal.status(f"ranking: {samples} cells with shared weights")
    genome = found.genome or rank_paths(judge, space, samples, config.seed)
    seconds = found.seconds + (time.perf_counter() - start if found.genome is None else 0.0)
    cost = space.cost(genome, data.classes, data.shape[0], data.shape[1])
    width, cells = space.network.args
    return {
        "version": VERSION, "method": method, "space": space.name, "channels": width, "cells": cells, "data": data.name,
        "images": len(data.train), "seed": config.seed, "device": device, "recipe": asdict(recipe), "samples": samples,
        "architecture": space.write(genome), "parameters": cost.parameters, "depth": cost.depth, "search_seconds": seconds,
        "shared_accuracy": judge(job_of(space, genome)).fitness, "curve": found.curve, "probabilities": found.probabilities,
    }  # fmt: skip


def job_of(space: StudentSpace, genome: Genome) -> StudentJob:
    return StudentJob(tuple(to_names(space.tree(genome))), "shared", ())


def rank_paths(judge: SharedWeights, space: StudentSpace, samples: int, seed: int) -> Genome:
    """The best of random cells by accuracy with shared weights on validation; the earliest of equals."""
    controller = RandomSearch(space.grammar)
    drawn = [space.genome(controller.ask(0, stream(seed, "rsps", number))) for number in range(samples)]
    scores = [judge(job_of(space, genome)).fitness for genome in drawn]
    best = max(range(samples), key=lambda i: -math.inf if scores[i] is None else scores[i])
    return drawn[best]


def _distilled(problem: StudentProblem, genome: Genome, terminal: Terminal) -> list[float]:
    """Test accuracy (%) of the cell by final seed, distilled by the protocol; a training that fails has none, and says why."""
    names, config = tuple(to_names(problem.space.tree(genome))), problem.config
    jobs = [StudentJob(names, "distill", (seed,), "test") for seed in evaluation_seeds(config.seed, "final", config.finals)]
    outcomes = list(problem.executor.map(jobs))
    for reason in dict.fromkeys(o.reason for o in outcomes if o.fitness is None):
        terminal.warn(f"a final training gave no figure: {reason}")
    return [o.metrics["accuracy"] for o in outcomes if o.fitness is not None]


def told(result: Mapping[str, Any]) -> list[str]:
    """The result in a few lines."""
    lines = [result["architecture"]]
    for slot, row in (result["probabilities"] or {}).items():
        lines.append(f"  {slot}  " + "  ".join(f"{op} {p:.3f}" for op, p in row.items()))
    if (sure := decided(result["probabilities"])) < UNDECIDED:
        lines.append(
            f"choices hardly moved (mean best {0.2 + sure:.3f} of 0.2 … 1): nearly chance; more steps or a larger --choice-lr"
        )
    if is_dead(read(result["architecture"])):
        lines.append("no path leads through this cell: the search collapsed")
    shared = result["shared_accuracy"]
    with_shared = "not finite" if shared is None else f"{shared:.1f} %"
    size = f"{result['parameters']:,} parameters"
    lines.append(f"{size} · found in {result['search_seconds']:.1f} s · with shared weights {with_shared} on validation")
    return lines + ([_told_finals(result["distilled"])] if "distilled" in result else [])


def decided(probabilities: Mapping[str, Mapping[str, float]] | None) -> float:
    """How far the best operator of the mean edge stands above an even choice; infinite where nothing was learned."""
    return statistics.fmean(max(row.values()) for row in probabilities.values()) - 0.2 if probabilities else math.inf


def _told_finals(values: Sequence[float]) -> str:
    if len(values) < 2:
        return "distilled: " + (f"{values[0]:.2f} % on test, one seed" if values else "no training gave a figure")
    mean, low, _ = interval(values)
    return f"distilled {mean:.2f} ± {mean - low:.2f} % on test (95 %, {len(values)} seeds, sd {statistics.stdev(values):.2f})"
