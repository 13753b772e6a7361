"""`evokd akd`: what is read of the command line, what is told, and refusals in one line."""

import pytest

from evokd.akd.experiment import read_plan, write_plan
from evokd.commands import akd
from evokd.commands.akd import main, new_plan, read_band, read_limit
from evokd.errors import EvokdError

REAL = akd._options


def plan_of(*arguments):
    kind = arguments[0] if arguments and arguments[0] in akd.KINDS else "square"
    return new_plan(kind, vars(REAL(kind).parse_args(arguments[1:] if arguments[:1] == (kind,) else arguments)))


def test_budgets_controllers_and_settings_become_a_plan():
    found = plan_of("--max-macs", "200k,0.4M", "--max-params", "5000", "--controller", "evolution,reinforce", "--seeds", "4",
                    "--data", "digits", "--transfer", "300", "-s", "protocol.steps=9")  # fmt: skip
    assert found.budgets == (("max_macs", 2e5), ("max_macs", 4e5), ("max_params", 5e3))
    assert (found.controllers, found.seeds, found.overrides) == (("evolution", "reinforce"), 4, ("protocol.steps=9",))
    config = found.config(found.budgets[0], seed=2)
    assert (config.max_macs, config.max_params, config.seed) == (200_000, None, 2)
    assert (config.protocol.steps, config.protocol.transfer, config.data) == (9, 300, "digits")


def test_students_are_a_number_or_texts():
    drawn, named = (plan_of("matrix", "--teachers", "a, b", "--students", text) for text in ("5", "basic4-1-1-1,777"))
    assert (drawn.count, drawn.students, drawn.teachers) == (5, (), ("a", "b"))
    assert (named.count, named.students) == (0, ("basic4-1-1-1", "777"))


@pytest.mark.parametrize(("text", "value"), [("200k", 2e5), ("1.5M", 1.5e6), ("7", 7.0), ("2e5", 2e5)])
def test_limits_are_read_with_their_units(text, value):
    assert read_limit("max_macs", text) == value


@pytest.mark.parametrize("text", ["0", "-3", "k", "many", "nan", "inf", "1kk"])
def test_other_limits_are_refused(text):
    with pytest.raises(EvokdError, match="--max-macs"):
        read_limit("max_macs", text)


@pytest.mark.parametrize("text", ["5", "5-4", "x-9", "-1-4", "1-inf", "4-4"])
def test_bands_that_are_none_are_refused(text):
    with pytest.raises(EvokdError, match="--bands"):
        read_band(text)


def test_the_table_is_told_and_written(shared_data, tmp_path, capsys):
    out = tmp_path / "new" / "table"
    assert main(["--table", "--tables", str(shared_data), "--bands", "60-75", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.strip().startswith("60–75"))
    assert line.split()[3:] == ["10", "537", "357", "72.14", "73.47", "71.58", "74.44", "1.53", "0.97"]
    assert {path.name for path in out.iterdir()} == {"report.html", "optima.png", "budgets.csv", "paper.csv"}


@pytest.mark.parametrize(
    ("arguments", "about"),
    [
        ([], "at least one budget"), (["--max-macs", "200k", "--seeds", "1"], "--seeds"), (["--bands", "3-4"], "--table"),
        (["--table", "--teacher", "resnet20"], "--teacher"), (["--table", "--tables", "nowhere"], "nowhere"),
        (["--resume", "nowhere"], "--resume"), (["--resume", "nowhere", "--data", "digits"], "--data"),
        (["matrix"], "--teachers"), (["agents", "--teachers", "resnet8w4"], "--teachers"), (["designs"], "--student"),
    ],
)  # fmt: skip
def test_what_a_user_gets_wrong_is_one_line(arguments, about, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EvokdError, match=about) as found:
        main(arguments)
    assert "\n" not in str(found.value)
    assert not list(tmp_path.glob("**/plan.json"))


def test_a_table_without_its_folder_is_refused(monkeypatch):
    monkeypatch.delenv("EVOKD_DATA", raising=False)
    with pytest.raises(EvokdError, match="--tables"):
        main(["--table"])


def test_resuming_takes_the_plan_as_it_was_with_more_seeds(tmp_path):
    write_plan(tmp_path, plan_of("--max-macs", "200k", "--workers", "1"))
    found = akd.resumed_plan(tmp_path, {"resume": str(tmp_path), "seeds": 5, "workers": 2})
    assert (found.seeds, found.values["workers"], found.budgets) == (5, 2, (("max_macs", 2e5),))
    assert read_plan(tmp_path) == found
    with pytest.raises(EvokdError, match="at least the 5"):
        akd.resumed_plan(tmp_path, {"seeds": 4})


def test_resuming_a_comparison_of_designs_is_not_refused_for_its_defaults(tmp_path):
    write_plan(tmp_path, plan_of("designs", "--student", "basic8-1-1-1"))
    given = vars(REAL("designs").parse_args(["--resume", str(tmp_path)]))
    assert akd.resumed_plan(tmp_path, given).options["equal"] == "latency"
