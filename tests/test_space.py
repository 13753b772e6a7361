from pathlib import Path

import pytest

from evokd.errors import EvokdError
from evokd.losses.language import loss_grammar
from evokd.space import read_space, space_names

SHIPPED = Path(__file__).parents[1] / "spaces" / "distiller"
GOOD = (SHIPPED / "compact.toml").read_text()


def test_every_shipped_space_is_listed():
    assert space_names() == sorted(p.stem for p in SHIPPED.glob("*.toml"))


@pytest.mark.parametrize("name", space_names())
def test_shipped_spaces_are_read_and_hold_losses(name):
    found = read_space(name)
    assert found.space.name == name
    assert found.text == (SHIPPED / f"{name}.toml").read_text()
    assert loss_grammar(found.space, ["logits", "embedding", "features[-1]"]).count() > 1000


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
    "too deep": ("x = " + "[" * 5000, "expected TOML"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_broken_space_is_refused_in_four_parts(case, tmp_path):
    text, told = BAD[case]
    assert text != GOOD
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(EvokdError) as caught:
        read_space(str(path))
    assert caught.value.where.startswith(str(path))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EvokdError, match="expected TOML"):
        read_space(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(
    ("name", "told"), [("compct", "did you mean 'compact'"), ("/none/x.toml", "choose from"), ("", "choose")]
)
def test_a_space_that_is_not_there_is_refused_with_a_hint(name, told):
    with pytest.raises(EvokdError, match=told):
        read_space(name)
