import sys
from pathlib import Path

import pytest

from evokd.errors import EvokdError
from evokd.losses import distances, transforms, weights
from evokd.losses.canonical import IDENTITIES
from evokd.losses.distances import DISTANCES
from evokd.losses.growth import loss_grammar
from evokd.losses.language import POSITIONS
from evokd.losses.schedules import SCHEDULES
from evokd.losses.transforms import TRANSFORMS
from evokd.losses.weights import MODES
from evokd.space import read_space, space_names
from tests.losses.forms import EVERYWHERE

SHIPPED = Path(__file__).parents[1] / "spaces" / "distiller"
GOOD = (SHIPPED / "compact.toml").read_text()


def test_every_shipped_space_is_listed():
    assert space_names() == sorted(p.stem for p in SHIPPED.glob("*.toml"))


@pytest.mark.parametrize("name", space_names())
def test_shipped_spaces_are_read_and_hold_losses(name):
    found = read_space(name)
    assert found.space.name == name
    assert found.text == (SHIPPED / f"{name}.toml").read_text()
    assert loss_grammar(found.space, ["logits", "embedding", "features[-1]"]).count() >= 48


@pytest.mark.parametrize("name", space_names())
def test_shipped_spaces_name_operators_that_can_be_reached(name):
    space = read_space(name).space
    nodes = loss_grammar(space, EVERYWHERE).nodes
    grown = {node.partition(":")[0] for node in nodes}
    assert grown >= space.operators
    assert grown >= {*space.modes, *space.modules}
    assert {node.partition("(")[0] for node in nodes if node.partition("(")[0] in SCHEDULES} == {*space.schedules}


def test_kd_zeros_space_is_its_table():
    space = read_space("kd_zero").space
    assert len(space.transforms) == 38
    assert {*space.transforms} == {name for names in transforms.TABLE_1.values() for name in names}
    assert {*space.distances} == {*distances.TABLE_1}
    assert {*space.modes} == {*weights.TABLE_1}
    assert not space.one_sided + space.schedules + space.modules


def test_the_extended_space_names_every_operator_but_the_identities():
    space = read_space("extended").space
    assert {*space.transforms} == {*TRANSFORMS} - IDENTITIES
    assert {*space.distances} == {*DISTANCES}
    assert {*space.modes} == {"no", *MODES}
    assert {*space.schedules} == {*SCHEDULES}
    assert {*space.positions} == {"features", "pre_relu", *(p for p in POSITIONS if "[" not in p)}


def test_a_file_is_read_by_its_path_and_hashed_by_its_text(tmp_path):
    (tmp_path / "mine.toml").write_text(GOOD)
    mine = read_space(str(tmp_path / "mine.toml"))
    assert mine.space.name == "mine"
    assert mine.hash == read_space("compact").hash
    (tmp_path / "mine.toml").write_text(GOOD + "# mine\n")
    assert read_space(str(tmp_path / "mine.toml")).hash != mine.hash


def test_names_are_kept_once(tmp_path):
    (tmp_path / "mine.toml").write_text(GOOD.replace('modes = ["no",', 'modes = ["no", "no",'))
    assert read_space(str(tmp_path / "mine.toml")).space == read_space("compact").space.__class__(
        **{**vars(read_space("compact").space), "name": "mine"}
    )


OPTIONAL = {"one_sided": ("temper", "norm_C"), "schedules": ("ramp", "anneal"), "modules": ("crd", "vid")}


@pytest.mark.parametrize("key", OPTIONAL)
def test_optional_keys_may_be_left_out_empty_or_filled(key, tmp_path):
    def read(text):
        (tmp_path / "mine.toml").write_text(text)
        return getattr(read_space(str(tmp_path / "mine.toml")).space, key)

    names = OPTIONAL[key]
    assert read(GOOD) == read(GOOD + f"\n{key} = []\n") == ()
    assert read(GOOD + f"\n{key} = {[*names]}\n") == names


def test_optional_keys_widen_the_grammar(tmp_path):
    (tmp_path / "mine.toml").write_text(GOOD + "".join(f"\n{key} = {[*names]}" for key, names in OPTIONAL.items()))
    space = read_space(str(tmp_path / "mine.toml")).space
    more = {*loss_grammar(space, EVERYWHERE).nodes} - {*loss_grammar(read_space("compact").space, EVERYWHERE).nodes}
    assert {name.partition(":")[0].partition("(")[0] for name in more} == {
        *(f"{side}.{name}" for side in ("student", "teacher") for name in OPTIONAL["one_sided"]),
        *OPTIONAL["schedules"],
        *(f"tau={name}" for name in OPTIONAL["schedules"]),
        *OPTIONAL["modules"],
    }
    assert space.name == "mine"


BAD = {
    "TOML": (GOOD + "max_terms = ", "expected TOML"),
    "operator": (
        GOOD.replace('"zscore_C"', '"zscore"'),
        "transforms[4]: expected a name among transforms, got 'zscore'; did you mean",
    ),
    "distance": (GOOD.replace('"pearson"', '"spearman"'), "distances[5]"),
    "position": (GOOD.replace('"embedding"', '"embeding"'), "did you mean 'embedding'"),
    "key": (GOOD + "\nmax_term = 2\n", "did you mean 'max_terms'"),
    "task": (GOOD.replace('"distiller"', '"student"'), "task: expected 'distiller', got 'student'"),
    "no task": (GOOD.replace("task", "# task"), "task"),
    "empty": ("", "task"),
    "missing": (GOOD.replace("distances", "# distances"), "distances: expected a list of names, got None"),
    "no names": (GOOD.replace('modes = ["no", "conf", "entropy"]', "modes = []"), "modes"),
    "no list": (GOOD.replace('modes = ["no", "conf", "entropy"]', 'modes = "no"'), "modes"),
    "number as name": (GOOD.replace('modes = ["no",', "modes = [1,"), "modes[0]"),
    "text as number": (GOOD.replace("taus = [1, 2", 'taus = [1, "2"'), "taus[1]: expected a number in (0, 1e6], got '2'"),
    "truth as number": (GOOD.replace("taus = [1,", "taus = [true,"), "taus[0]"),
    "negative": (GOOD.replace("values = [0.1", "values = [-0.1"), "values[0]"),
    "nought": (GOOD.replace("taus = [1,", "taus = [0,"), "taus[0]"),
    "NaN": (GOOD.replace("values = [0.1", "values = [nan"), "values[0]"),
    "infinite": (GOOD.replace("values = [0.1", "values = [inf"), "values[0]"),
    "too many terms": (GOOD.replace("max_terms = 3", "max_terms = 9"), "max_terms: expected an integer from 1 to 8, got 9"),
    "half a term": (GOOD.replace("max_terms = 3", "max_terms = 1.5"), "max_terms"),
    "true terms": (GOOD.replace("max_terms = 3", "max_terms = true"), "max_terms"),
    "side of another shape": (
        GOOD + 'one_sided = ["temper", "mm"]',
        "one_sided[1]: expected an operator that keeps the shape, got mm",
    ),
    "side of a distance": (GOOD + 'one_sided = ["l2"]', "one_sided[0]: expected a name among one_sided, got 'l2'"),
    "sides as text": (GOOD + 'one_sided = "temper"', "one_sided: expected a list of names, got 'temper'"),
    "schedule": (
        GOOD + 'schedules = ["rampe"]',
        "schedules[0]: expected a name among schedules, got 'rampe'; did you mean 'ramp'?",
    ),
    "schedule with numbers": (GOOD + 'schedules = ["ramp(0, 1)"]', "schedules[0]"),
    "module": (GOOD + 'modules = ["crd", "CRD"]', "modules[1]"),
    "module as a distance": (GOOD.replace('"pearson"', '"crd"'), "distances[5]"),
    "transform as a distance": (GOOD.replace('"pearson"', '"mm"'), "distances[5]"),
    "code": (GOOD.replace('"pearson"', "\"__import__('sys').stop()\""), "distances[5]: expected a name among distances"),
    "dunder name": (GOOD.replace('"pearson"', '"__class__"'), "distances[5]"),
    "dunder key": (GOOD + "__class__ = 1", "expected a key of a distiller space, got '__class__'"),
    "file of a user": (GOOD.replace('"pearson"', '"mine.py:stop"'), "distances[5]"),
    "nested names": (GOOD.replace('"pearson"', '["pearson"]'), "distances[5]"),
    "table of names": (GOOD.replace('modes = ["no", "conf", "entropy"]', "modes = {no = 1}"), "modes: expected a list of names"),
    "negative NaN": (GOOD.replace("taus = [1,", "taus = [-nan,"), "taus[0]"),
    "number of 400 digits": (GOOD.replace("values = [0.1", "values = [" + "1" * 400), "values[0]: expected a number in (0, 1e6]"),
    "number of 5000 digits": (GOOD.replace("max_terms = 3", "max_terms = " + "1" * 5000), "expected TOML"),
    "long name": (GOOD.replace('"pearson"', '"' + "a" * 10_000 + '"'), "distances[5]"),
    "long key": (GOOD + "a" * 10_000 + " = 1", "expected a key of a distiller space"),
    "long task": (GOOD.replace('"distiller"', '"' + "a" * 10_000 + '"'), "task: expected 'distiller'"),
    "10 MB": (GOOD + "#" * 10_000_000, "expected at most 20000 bytes"),
    "10 MB of names": (GOOD.replace('"temper",', '"temper",' * 1_100_000), "expected at most 20000 bytes"),
    "too deep": ("x = " + "[" * 10_000, "expected TOML"),
    "too deep a table": ("x = " + "{a = " * 3_000, "expected TOML"),
    "too long a key": (".".join(["a"] * 2_000) + " = 1", "expected a key of a distiller space, got 'a'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_broken_space_is_refused_in_four_parts(case, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stop", lambda: pytest.fail("a name was run"), raising=False)
    text, told = BAD[case]
    assert text != GOOD
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(EvokdError) as caught:
        read_space(str(path))
    assert caught.value.where.startswith(str(path))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EvokdError, match="expected TOML"):
        read_space(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("compct", "did you mean 'compact'"),
        ("/none/x.toml", "choose from"),
        ("", "choose"),
        ("a" * 300, "a space's name or an existing file"),
        ("a" * 100_000, "a space's name or an existing file"),
        ("\x00", "a space's name or an existing file"),
    ],
    ids=lambda text: text[:20],
)
def test_a_space_that_is_not_there_is_refused_with_a_hint(name, told):
    with pytest.raises(EvokdError, match=told):
        read_space(name)
