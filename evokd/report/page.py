"""The report: one self-contained HTML page made from what the run folder says, figures inline as SVG."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from evokd.checkpoint import write_whole
from evokd.config import Config, read_config
from evokd.errors import EvokdError
from evokd.funnel import funnel_rows, reasons, stopped
from evokd.genome.individual import Status
from evokd.journal import individuals, read_events, read_outcome
from evokd.losses.language import parse_loss, to_terms
from evokd.report.figures import Figure, draw_front, draw_funnel, draw_operators, draw_search
from evokd.report.loss_tree import draw_tree
from evokd.report.sizes import Size
from evokd.shrink import weigh
from evokd.space import read_space

if TYPE_CHECKING:
    from evokd.ablation import Ablated
    from evokd.finals import Row
    from evokd.losses.taps import Taps

_PAGE = Path(__file__).with_suffix(".html")


def formula_of(text: str, examples: tuple[Taps, Taps], gamma: float) -> str:
    """A loss as paragraphs of MathML, for the report; nothing where it has trained parts."""
    tree = parse_loss(text)
    if any(term.module for term in to_terms(tree)):
        return ""
    from evokd.losses import to_sympy

    lines = to_sympy(tree, *examples).mathml()
    note = f"Beside {gamma:g} · cross-entropy over the whole batch. z, e, F: logits, embedding, feature maps of"
    return f'<p class="note">{note} student (S) and teacher (T).</p>' + "".join(f"<p>{line}</p>" for line in lines)


def write_report(
    folder: Path, best: str, shown: str, rows: Sequence[Row] = (), more: Sequence[Figure] = (), ablation: Sequence[Ablated] = ()
) -> Path:
    """report.html of a search, and the figures that its journal tells; the page's path.

    Args:
        folder: of the run.
        best: text of what was found.
        shown: HTML that shows it: a formula, or a diagram.
        rows: of the finals.
        more: figures of trained networks.
        ablation: the winner and its variants, the winner first.
    """
    config, events = read_config(folder / "config.toml"), read_events(folder)
    born = list(individuals(events))
    outcomes = [read_outcome(event) for event in born]
    sound = sorted((e for e in born if e["status"] == Status.OK), key=lambda e: -e["fitness"])
    trained = sum(o.status is not Status.REJECTED and not stopped(o) for o in outcomes)
    history, sizes = [e for e in events if e["event"] == "generation"], read_front(folder)
    text = (
        jinja2.Environment(autoescape=True)
        .from_string(_PAGE.read_text(encoding="utf-8"))
        .render(
            name=folder.resolve().name,
            card=next((e["card"] for e in events if e["event"] == "start" and "card" in e), {}),
            config=config,
            seconds=round(sum(e["seconds"] for e in history)),
            best=best,
            what={"distiller": "loss", "student": "student"}[config.task],
            shown=shown,
            rows=rows,
            reference=next((r.entry.name for r in rows if r.difference is None), ""),
            evaluated=trained,
            rejected=len(born) - trained,
            failed=trained - len(sound),
            top=sound[:15],
            sizes=sizes if config.task == "distiller" else (),
            funnel=funnel_rows(history),
            reasons=reasons(outcomes),
            generations=[(event["generation"], funnel_rows([event])) for event in history],
            drawn=_drawn(folder, config, events, best, sizes),
            more=more,
            ablation=ablation,
        )
    )
    write_whole(folder / "report.html", text)
    return folder / "report.html"


def _drawn(folder: Path, config: Config, events: Sequence[dict], best: str, sizes: Sequence[Size]) -> dict[str, str]:
    """Name → SVG of every figure that the journal tells."""
    sound = [e for e in individuals(events) if e["status"] == Status.OK]
    found = {
        "search": draw_search(folder, [e["fitness"] for e in sound]),
        "funnel": draw_funnel(folder, funnel_rows(e for e in events if e["event"] == "generation")),
        "front": draw_front(folder, *_sized(sound, config.task), sizes),
    }
    if config.task == "student":
        return found
    found["tree"] = draw_tree(folder, best)
    try:
        space = read_space(str(folder / "space.toml")).space
    except EvokdError:  # a space with operators of the user's own, that nobody has named
        return found
    return found | {"operators": draw_operators(folder, weigh(events, space))}


def _sized(sound: Sequence[dict], task: str) -> tuple[list[tuple[float, float]], str]:
    """(size, fitness) of what was trained, and what size means."""
    if task == "student":
        return [(e["metrics"]["parameters"], e["fitness"]) for e in sound if "parameters" in e["metrics"]], "parameters"
    return [(len(e["tree"]), e["fitness"]) for e in sound], "nodes of the tree"


def read_front(folder: Path) -> list[Size]:
    """The best of every size as front.csv has it; none of a run without."""
    path = folder / "front.csv"
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [_size(row) for row in csv.DictReader(file)]


def _size(row: dict[str, str]) -> Size:
    """Of a loss, or of a student, whose size is its parameters."""
    if "student" in row:
        return Size(int(row["parameters"]), float(row["fitness"]), row["student"])
    return Size(int(row["size"]), float(row["fitness"]), row["loss"], float(row["gain"]), row["picked"] == "1")


def plain(text: str) -> str:
    """Text as a preformatted paragraph."""
    return f"<pre>{escape(text.rstrip())}</pre>"
