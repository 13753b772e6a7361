"""`evokd spaces`: the list, one space, the survey."""

import json
import re
from functools import cache

import pytest

from evokd.commands import main
from evokd.commands.spaces import contains, show, survey
from evokd.genome.individual import Individual, Outcome, Status
from evokd.genome.variation import mutate_constant
from evokd.journal import Journal
from evokd.losses.growth import loss_grammar
from evokd.losses.known import KNOWN
from evokd.losses.language import parse_loss, write_loss
from evokd.losses.survey import SURVEY
from evokd.space import read_space, space_names
from evokd.streams import stream
from tests.losses.forms import EVERYWHERE, grown


def said(capsys, *options):
    assert main(["spaces", *options]) == 0
    return capsys.readouterr().out


@cache
def opened(name):
    space = read_space(name).space
    return space, loss_grammar(space, EVERYWHERE)


def inside(name, text):
    return contains(*opened(name), text)


def test_without_a_name_the_spaces_are_listed(capsys):
    assert said(capsys).split() == space_names()


@pytest.mark.parametrize("name", space_names())
def test_a_space_is_shown_with_all_that_it_names(name, capsys):
    text, space = said(capsys, name), read_space(name).space
    assert text.startswith(f"space {name}, for a pair that shows logits")
    words = {*re.split(r"[\s,]+", text)}
    assert words >= {*space.transforms, *space.distances, *space.modes, *space.one_sided, *space.schedules, *space.modules}
    for amount, what in ((space.transforms, "transforms"), (space.distances, "distances"), (space.modes, "weight modes")):
        assert f"{len(amount)} {what}" in text
    assert f"losses of at most {space.max_terms} terms" in text


def test_operators_stand_under_the_kind_that_they_give_with_their_formula():
    lines = show("extended").splitlines()
    kinds = [line.strip() for line in lines if re.fullmatch("  [a-z]+", line)]
    assert kinds == ["maps", "tokens", "rows", "classes", "relation", "columns"]
    columns = lines[lines.index("  columns") :]
    assert any(line.split()[:2] == ["class_gradient", "(P−Y)ᵀ·e/N"] and line.endswith("of classes and rows") for line in columns)
    tokens = lines[lines.index("  tokens") : lines.index("  rows")]
    assert any(line.split()[0] == "cross" and line.endswith("of maps and maps") for line in tokens)
    assert any(line.startswith("on one side alone: temper, relu") for line in lines)
    assert "schedules: ramp, cosine, anneal, step" in lines


def test_operators_out_of_reach_are_not_shown():
    text = show("logits")
    assert "  maps" not in text.splitlines()
    assert "  tokens" not in text.splitlines()


def test_the_count_of_the_tiny_space_is_exact():
    values, taus, positions = 2, 2, 2
    plain = values * positions * (1 + taus)  # l2 or kl of a position
    chains = values * positions * 3 * (1 + taus)  # softmax_C, norm_C or mm before
    counts = [int(line.split()[-1]) for line in show("tiny").splitlines() if line.startswith("  ≤")]
    assert counts == [plain, plain + chains]


@pytest.mark.parametrize("name", space_names())
def test_published_losses_are_listed_where_they_are_points(name):
    listed = {line.split()[0] for line in show(name).partition("published losses")[2].splitlines()[1:]}
    assert listed == {n for n, text in KNOWN.items() if inside(name, text)}
    assert {"kd", "logits"} <= listed


def test_the_extended_space_holds_all_published_losses_of_its_size():
    outside = {n for n, text in KNOWN.items() if not inside("extended", text)}
    assert all(text.count(" + ") >= 4 for n, text in KNOWN.items() if n in outside), outside


@pytest.mark.parametrize("name", space_names())
def test_what_grows_in_a_space_is_contained_in_it_whatever_its_numbers(name):
    _, grammar = opened(name)
    draw = stream(0, "spaces")
    for tree in grown(name, range(30)):
        (other,) = mutate_constant(tree, grammar, draw)
        assert inside(name, write_loss(tree))
        assert inside(name, write_loss(other))


@pytest.mark.parametrize(
    "text",
    [
        "l1(logits)",
        "l2(relu(logits))",
        "l2(features[-1])",
        "focal*l2(logits)",
        "l2(teacher.norm_C(logits))",
        "l2(logits) + l2(embedding)",
        "l2(norm_C(norm_C(logits)))",
        "crd",
    ],
)
def test_what_a_space_does_not_name_is_outside(text):
    assert not inside("tiny", text)
    assert parse_loss(text)


def test_a_file_is_shown_by_its_path(tmp_path, capsys):
    (tmp_path / "mine.toml").write_text(read_space("tiny").text + '\nmodules = ["crd"]\nschedules = ["step"]\n')
    text = said(capsys, str(tmp_path / "mine.toml"))
    assert text.startswith("space mine, ")
    assert "with trained parts: crd" in text
    assert "schedules: step" in text


def test_the_survey_is_printed_with_all_rows_and_verdicts(capsys):
    text = said(capsys, "survey")
    assert text == survey() + "\n"
    for row in SURVEY:
        (line,) = [line for line in text.splitlines() if line.startswith(f"{row.method:<10}{row.teacher}")]
        assert line.endswith(row.verdict)
        assert row.loss in text
        assert row.note in text
    assert text.splitlines()[-1].startswith(f"{len(SURVEY)} methods: ")
    assert sum(map(int, re.findall(r"(\d+) [a-z]", text.splitlines()[-1].partition(": ")[2]))) == len(SURVEY)


@pytest.mark.parametrize("options", [["compct"], ["nowhere.toml"], ["tiny", "--operators", "nowhere.py:f"], ["\0"], ["a" * 5000]])
def test_what_is_no_space_is_refused_in_one_line(options, capsys):
    assert main(["spaces", *options]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith("evokd: ")
    assert found.err.count("\n") == 1


@pytest.fixture
def run(tmp_path):
    """A run of compact in which every loss with l1 is worst."""
    folder, draw = tmp_path / "2026-run", stream(0, "run")
    folder.mkdir()
    (folder / "space.toml").write_text(read_space("compact").text, encoding="utf-8")
    journal = Journal(folder)
    journal.write("start", version=1)
    for number, distance in enumerate(["l1", "l2", "cosine", "pearson"] * 15):
        tree = parse_loss(f"{draw.uniform(1, 2):.9g}*{distance}(logits)")
        individual = Individual(list(tree))
        individual.id, individual.generation = number, number // 20
        failed = distance == "l1" and number % 3 == 0
        individual.settle(Outcome(Status.CRASHED) if failed else Outcome(Status.OK, draw.random() - (distance == "l1")))
        journal.individual(individual, str(number), write_loss(tree))
    journal.close()
    return folder


def test_a_run_shrinks_its_space(run, capsys):
    lines = said(capsys, "shrink", str(run)).splitlines()
    assert lines[0] == "run 2026-run: 60 candidates judged"
    (row,) = [line.split() for line in lines if line.split()[0] == "l1"]
    assert (row[1], row[2], row[-1]) == ("15", "5", "dropped")
    assert float(row[3]) < 0.2
    assert float(row[4]) < 1e-6
    space = read_space("compact").space
    listed = [line.split() for line in lines if line.startswith("  ")]
    assert sorted(words[0] for words in listed) == sorted([*space.transforms, *space.distances, *space.modes, *space.positions])
    assert [words[0] for words in listed if words[-1] == "dropped"] == ["l1"]
    assert lines[-1].endswith(f"python -m evokd.evolve distiller --space {run / 'shrunk.toml'}")
    left = read_space(str(run / "shrunk.toml"))
    assert left.space.distances == tuple(d for d in space.distances if d != "l1")
    assert left.text.startswith("# Shrunk by what run 2026-run found: 60 candidates were read.\n# dropped l1: 15 candidates, ")
    assert said(capsys, str(run / "shrunk.toml")).startswith("space shrunk, ")


def test_the_new_space_goes_where_it_is_told_and_over_an_earlier_one(run, tmp_path, capsys):
    for _ in range(2):
        assert f"--space {tmp_path / 'new.toml'}" in said(capsys, "shrink", str(run), "--out", str(tmp_path / "new.toml"))
        said(capsys, "shrink", str(run))
    assert not list(tmp_path.rglob("*.part"))
    assert (tmp_path / "new.toml").read_text() == (run / "shrunk.toml").read_text()


def test_where_nothing_is_worst_the_space_stays_and_that_is_said(run, tmp_path, capsys):
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    alike = [e | {"status": "OK", "fitness": 1.0} if e["event"] == "individual" else e for e in events]
    (run / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in alike))
    assert "nothing is consistently worst" in said(capsys, "shrink", str(run))
    assert read_space(str(run / "shrunk.toml")).space.distances == read_space("compact").space.distances


def refused(capsys, *options):
    assert main(["spaces", *options]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.count("\n") == 1
    return found.err


@pytest.mark.parametrize("options", [[], ["nowhere"], ["\0"], ["a" * 5000], [""]])
def test_shrinking_needs_a_run_folder(options, capsys):
    assert "a run folder" in refused(capsys, "shrink", *options)


def test_what_is_no_run_of_a_distiller_is_refused_by_what_it_lacks(run, tmp_path, capsys):
    assert "a run folder with space.toml" in refused(capsys, "shrink", str(tmp_path))
    (run / "events.jsonl").write_text('{"event": "start"}\n')
    assert "a journal with judged candidates" in refused(capsys, "shrink", str(run))
    (run / "events.jsonl").unlink()
    assert "events.jsonl" in refused(capsys, "shrink", str(run))
    (run / "space.toml").write_text('task = "student"\nspace = "resnet"\n')
    assert "a search for a distiller" in refused(capsys, "shrink", str(run))
    (run / "space.toml").write_text("= 3")
    assert "space.toml" in refused(capsys, "shrink", str(run))
    assert not (run / "shrunk.toml").exists()


def test_a_run_keeps_its_own_files_and_a_bad_target_is_refused(run, tmp_path, capsys):
    kept = {path.name: path.read_text() for path in run.iterdir()}
    for name in kept:
        assert "another file than one of the run" in refused(capsys, "shrink", str(run), "--out", str(run / "." / name))
    assert {path.name: path.read_text() for path in run.iterdir()} == kept
    for target in (tmp_path, tmp_path / "no" / "new.toml", "a\0b"):
        assert "--out" in refused(capsys, "shrink", str(run), "--out", str(target))
    assert not list(tmp_path.parent.glob("*.part"))


@pytest.mark.parametrize(
    "options", [["compact", "run"], ["compact", "--out", "new.toml"], ["--out", "new.toml"], ["survey", "x"]]
)
def test_a_run_and_a_target_belong_to_shrinking_alone(options, capsys):
    assert "after shrink alone" in refused(capsys, *options)
