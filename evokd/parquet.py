"""All candidates of a run as one table for pandas, Polars or DuckDB: `individuals.parquet`, a row each, a column for every figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

NAME = "individuals.parquet"
_PLAIN = ("id", "generation", "op", "parents", "key", "text", "tree", "status", "fitness", "reason", "seconds")


def write_individuals(folder: Path, events: Sequence[Mapping]) -> Path:
    """The table in a folder; its path.

    Args:
        folder: of the run.
        events: of its candidates, as the journal has them.
    """
    import pyarrow as pa
    from pyarrow import parquet

    rows = [{name: event.get(name) for name in _PLAIN} | _figures(event["metrics"]) for event in events]
    names = dict.fromkeys(name for row in rows for name in row)
    path = folder / NAME
    part = path.with_name(f"{NAME}.part")
    parquet.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), part)
    part.replace(path)
    return path


def _figures(metrics: Mapping) -> dict:
    """A column each: numbers as floats, lists of numbers likewise, texts as they are."""
    return {f"figures.{name}": _plain(value) for name, value in metrics.items()}


def _plain(value: object) -> object:
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return float(value) if isinstance(value, int | float) else value
