"""`evokd spaces`: the list, one space, the survey."""

import re
from functools import cache

import pytest

from evokd.commands import main
from evokd.commands.spaces import contains, show, survey
from evokd.genome.variation import mutate_constant
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
