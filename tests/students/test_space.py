import random
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evokd.errors import EvokdError
from evokd.genome.codec import to_names
from evokd.genome.grow import grow_tree, random_chooser
from evokd.genome.variation import MUTATIONS, mate
from evokd.students import LANGUAGES, read_student_space
from evokd.students.space import Cost, StudentSpace

MANY = settings(derandomize=True, deadline=None, max_examples=80)
SEEDS = st.integers(0, 10**6)
FLAT = {"width": ("4", "8"), "depth": ("1", "2", "3")}
GROUPED = {"block1.kernel": ("3", "5"), "block1.width": ("4", "8"), "block2.kernel": ("3", "5"), "block2.width": ("8", "16")}


def toy(slots):
    """A language whose text is its choices, parted by spaces."""
    names = list(slots)
    return StudentSpace(
        name="toy",
        slots=slots,
        network=None,
        write=lambda genome: " ".join(genome.values()),
        read=lambda text: dict(zip(names, text.split(), strict=False)),
        key_of=lambda genome: " ".join(genome.values()),
        cost=lambda genome, classes, channels, side: Cost(*[prod(map(int, genome.values()))] * 3, depth=1),
        diagram=lambda genome: "",
    )


SPACES = [toy(FLAT), toy(GROUPED), read_student_space("nas_bench_201"), read_student_space("nas_bench_macro")]
every_space = pytest.mark.parametrize("space", SPACES, ids=["flat", "grouped", "nas_bench_201", "nas_bench_macro"])


def tree_of(space, seed):
    return grow_tree(space.grammar, random_chooser(random.Random(seed)))


@every_space
@MANY
@given(seed=SEEDS)
def test_tree_genome_text_and_names_tell_the_same(space, seed):
    tree = tree_of(space, seed)
    genome = space.genome(tree)
    assert list(genome) == list(space.slots)
    assert space.tree(genome) == tree
    assert space.parse(space.grammar.write(tree)) == tree
    assert space.tree_from_names(to_names(tree)) == tree


@every_space
@MANY
@given(seed=SEEDS)
def test_varied_trees_are_genomes_of_the_space(space, seed):
    draw = random.Random(seed)
    first, second = tree_of(space, seed), tree_of(space, seed + 1)
    children = [
        *mate(first, second, space.grammar, draw),
        *(MUTATIONS[name](first, space.grammar, draw)[0] for name in MUTATIONS),
    ]
    for child in children:
        assert space.tree(space.genome(child)) == child


@every_space
def test_the_number_of_genomes_is_that_of_the_grammar(space):
    assert space.count() == space.grammar.count()


@pytest.mark.parametrize("slots", [FLAT, GROUPED], ids=["flat", "grouped"])
def test_genomes_are_listed_once_each(slots):
    space = toy(slots)
    texts = [space.write(genome) for genome in space.genomes()]
    assert len(set(texts)) == len(texts) == space.count()
    assert texts[0] == " ".join(choices[0] for choices in slots.values())


def test_groups_stand_between_the_root_and_their_slots():
    tree = toy(GROUPED).parse("5 4 3 16")
    assert to_names(tree) == [
        "net",
        "block1",
        "block1.kernel=5",
        "block1.width=4",
        "block2",
        "block2.kernel=3",
        "block2.width=16",
    ]


@pytest.mark.parametrize("text", ["4", "4 7", "5 1", ""])
def test_genomes_outside_the_space_are_refused(text):
    with pytest.raises(EvokdError, match=r"toy, (width|depth): expected one of"):
        toy(FLAT).parse(text)


@pytest.mark.parametrize("names", [["net"], ["width=4"], ["net", "width=4", "width=8"], ["net", "nothing=4", "depth=1"], []])
def test_names_that_are_no_tree_are_refused(names):
    with pytest.raises(EvokdError):
        toy(FLAT).tree_from_names(names)


def file_of(folder, text):
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def test_a_file_sets_the_options_of_its_language(tmp_path):
    small = read_student_space(file_of(tmp_path, 'task = "student"\nlanguage = "nas_bench_201"\nchannels = 4\ncells = 1\n'))
    genome = next(small.genomes())
    assert small.name == "nas_bench_201"
    assert small.cost(genome, 10, 3, 32).parameters < SPACES[2].cost(genome, 10, 3, 32).parameters


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("task = ", "expected TOML"),
        ("", "task: expected 'student', got None"),
        ('task = "distiller"', "task: expected 'student', got 'distiller'"),
        ('task = "student"', "language: expected a language of students, got 'None'"),
        ('task = "student"\nlanguage = "nas_bench_2O1"', "did you mean 'nas_bench_201'"),
        ('task = "student"\nlanguage = ["nas_bench_201"]', "language: expected a language of students"),
        ('task = "student"\nlanguage = "nas_bench_201"\nchanels = 4', "did you mean 'channels'"),
        (
            'task = "student"\nlanguage = "nas_bench_201"\nchannels = 0',
            "nas_bench_201, channels: expected integers from 1 to 1024, got [0]",
        ),
        ('task = "student"\nlanguage = "nas_bench_201"\ncells = true', "cells: expected"),
        ('task = "student"\nlanguage = "nas_bench_macro"\nchannels = "32"', "channels: expected"),
    ],
)
def test_files_that_say_something_else_are_refused_by_name(tmp_path, text, said):
    with pytest.raises(EvokdError, match=r"mine\.toml") as refused:
        read_student_space(file_of(tmp_path, text))
    assert said in str(refused.value)


def test_an_unknown_space_is_answered_with_a_near_one():
    with pytest.raises(EvokdError, match="did you mean 'nas_bench_201'"):
        read_student_space("nas_bench_202")


def test_languages_are_modules_of_their_name():
    assert all(module == f"evokd.students.{name}" for name, module in LANGUAGES.items())
