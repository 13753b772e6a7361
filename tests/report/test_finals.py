"""The closing table from a journal, by hand, and as CSV and LaTeX."""

import csv
import io
import statistics

import pytest
from scipy import stats

from evokd.ablation import Ablated, Variant
from evokd.finals import Entry, Row
from evokd.report.finals import HEAD, as_csv, as_latex, escaped, rows_of

TOLD = {
    "evolved, simplest within 1σ": ("20*cosine(logits)", None, [60.0, 64.0, 62.0]),
    "KD (τ=4), as published": ("0.9*kl(logits, tau=4)", 0.1, [50.0, 51.0, 55.0]),
    "plain, equal steps": (None, 1.0, [49.0, None, 48.0]),
}


def events():
    for row, (text, gamma, values) in TOLD.items():
        for seed, value in enumerate(values):
            metrics = {} if value is None else {"accuracy": value}
            yield {"event": "final", "row": row, "text": text, "gamma": gamma, "seed": seed, "metrics": metrics}
    yield {"event": "end", "best": "20*cosine(logits)"}


def test_rows_have_paired_differences_to_kd():
    evolved, kd, plain = rows_of(events())
    assert [row.entry.name for row in (evolved, kd, plain)] == ["evolved", "KD (τ=4), as published", "plain, equal steps"]
    gaps = [10.0, 13.0, 7.0]
    half = stats.t.ppf(0.975, 2) * statistics.stdev(gaps) / 3**0.5
    assert evolved.difference == pytest.approx((10, 10 - half, 10 + half))
    assert kd.difference is None
    assert plain.values == (49.0, 48.0)
    assert plain.difference[0] == pytest.approx((-1.0 - 7.0) / 2)
    assert plain.entry == Entry("plain, equal steps", None, 1.0)


def test_students_are_compared_with_the_human_designed_one():
    named = [("evolved, distilled", 90.0), ("human-designed, distilled", 91.0), ("human-designed, labels alone", 80.0)]
    told = [{"event": "final", "row": row, "seed": s, "accuracy": a + s} for row, a in named for s in (0, 1)]
    assert [row.difference and row.difference[0] for row in rows_of(told)] == [-1.0, None, -11.0]


def test_without_finals_there_are_no_rows():
    assert rows_of([{"event": "start"}]) == []


def test_the_tables_say_the_same():
    rows = rows_of(events())
    parts = [
        Ablated(Variant("the whole loss", "l2(logits)"), Row(Entry("the whole loss", "l2(logits)"), (60.0, 62.0))),
        Ablated(Variant("without mm", None, "does not fit"), Row(Entry("without mm", None), ())),
    ]
    read = list(csv.DictReader(io.StringIO(as_csv(rows, parts))))
    assert tuple(read[0]) == HEAD
    assert [(r["table"], r["row"]) for r in read[2:]] == [
        ("finals", "plain, equal steps"), ("ablation", "the whole loss"), ("ablation", "without mm"),
    ]  # fmt: skip
    assert float(read[0]["difference"]) == 10
    assert (read[4]["mean"], read[4]["seeds"]) == ("", "0")
    tex = as_latex(rows, parts)
    assert tex.count(r"\begin{table}") == tex.count(r"\end{table}") == 2
    assert r"KD ($\tau$=4), as published & $52.00 \pm" in tex
    assert "without mm" not in tex
    assert as_latex([], []) == ""
    assert escaped("a_b 5% & τ") == r"a\_b 5\% \& $\tau$"
