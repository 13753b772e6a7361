"""`evokd runs`: every run with its state and best loss, read from the journals alone."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str]) -> int:
    options = argparse.ArgumentParser(prog="evokd runs", description="List runs with their state and best loss.")
    options.add_argument("--out", default="runs", metavar="DIR")
    given = options.parse_args(arguments)
    rows = [describe(path.parent) for path in sorted(Path(given.out).glob("*/events.jsonl"))]
    print("\n".join(rows) if rows else f"no runs under {given.out}")
    return 0


def describe(folder: Path) -> str:
    """Name, state, trainings, best fitness and loss of one run."""
    from evokd.errors import EvokdError
    from evokd.journal import read_events

    try:
        events = read_events(folder)
    except EvokdError:
        return f"{folder.name:<44} unreadable"
    state = "finished" if events and events[-1]["event"] == "end" else "going" if _locked(folder) else "stopped"
    last = next((e for e in reversed(events) if e["event"] == "generation"), None)
    if last is None:
        seeds = sum(e["event"] == "seed" for e in events)  # of a full training
        return f"{folder.name:<44} {state:<9}" + (f" {seeds} seeds trained" if seeds else " before its first generation")
    best = f"{last['best']:.2f}" if last["best"] is not None else "–"
    return f"{folder.name:<44} {state:<9} g{last['generation']:<3} {last['evaluations']:>5} trained  best {best}  {last['best_text']}"


def _locked(folder: Path) -> bool:
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / ".lock", timeout=0):
            return False
    except (Timeout, OSError):
        return True
