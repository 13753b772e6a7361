"""The report: one self-contained HTML page, figures inline as SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from evokd.checkpoint import write_whole
from evokd.funnel import funnel_rows, reasons
from evokd.losses.language import parse_loss, to_terms

if TYPE_CHECKING:
    from evokd.finals import Entry, Row
    from evokd.problem import Problem
    from evokd.report.sizes import Size
    from evokd.run import Search

_PAGE = Path(__file__).with_suffix(".html")


def formula_of(text: str, problem: Problem) -> str:
    """A loss as paragraphs of MathML, for the report; nothing where it has trained parts."""
    tree = parse_loss(text)
    if any(term.module for term in to_terms(tree)):
        return ""
    from evokd.losses import to_sympy

    lines = to_sympy(tree, *problem.examples[:2]).mathml()
    note = f"Beside {problem.config.protocol.gamma:g} · cross-entropy over the whole batch. z, e, F: logits, embedding, feature maps of"
    return f'<p class="note">{note} student (S) and teacher (T).</p>' + "".join(f"<p>{line}</p>" for line in lines)


def write_report(
    folder: Path, problem: Problem, search: Search, rows: Sequence[Row], best: Entry, seconds: float, shown: str,
    sizes: Sequence[Size] = (),
) -> Path:  # fmt: skip
    """report.html of a run; its path. `shown` is HTML that shows the best: a formula, or a diagram; `sizes` are the best of every size."""
    sound = sorted((i for i in search.individuals if i.ok), key=lambda i: -i.outcome.fitness)
    text = (
        jinja2.Environment(autoescape=True)
        .from_string(_PAGE.read_text(encoding="utf-8"))
        .render(
            name=folder.name,
            card=problem.card,
            config=problem.config,
            space=problem.grammar.name,
            seconds=round(seconds),
            best=best,
            what={"distiller": "loss", "student": "student"}[problem.config.task],
            shown=shown,
            rows=rows,
            reference=next((r.entry.name for r in rows if r.difference is None), ""),
            curve=_curve(search),
            evaluated=search.trained,
            rejected=len(search.individuals) - search.trained,
            failed=search.trained - len(sound),
            top=[(i, search.text(i)) for i in sound[:15]],
            sizes=sizes,
            funnel=funnel_rows(search.history),
            reasons=reasons(search.individuals),
            generations=[(event["generation"], funnel_rows([event])) for event in search.history],
        )
    )
    write_whole(folder / "report.html", text)
    return folder / "report.html"


def _curve(search: Search) -> str:
    """Fitness against trainings as inline SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    trained = [i for i in search.individuals if i.ok]
    values = [i.outcome.fitness for i in trained]
    best = [max(values[: n + 1]) for n in range(len(values))]
    figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
    axes.scatter(range(1, len(values) + 1), values, s=12, color="#8d99ae", label="candidate")
    axes.step(range(1, len(best) + 1), best, where="post", color="#d1495b", label="best so far")
    low = sorted(values)[len(values) // 5] if values else 0
    axes.set(xlabel="trainings", ylabel="validation fitness", ylim=(low - 1, max(values, default=1) + 1))
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]
