import tomllib

import pytest

from evokd.config import PRESETS, Config, Protocol, make_config, read_config
from evokd.errors import EvokdError


def test_values_stand_over_presets_and_overrides_over_both():
    preset = PRESETS["distiller", "digits"]["protocol"]
    config = make_config({"data": "digits", "protocol": {"steps": 7}}, ["protocol.lr=0.5", "seed=3"])
    assert (config.protocol.steps, config.protocol.lr, config.seed) == (7, 0.5, 3)
    for name, value in preset.items():
        if name != "steps":
            assert getattr(config.protocol, name) == value


def test_presets_belong_to_their_data_and_stay_as_they_are():
    make_config({}, ["protocol.steps=9", "protocol.gamma=0.7"])
    assert make_config({"data": "cifar10"}).protocol == Protocol()
    assert make_config({}).protocol.steps == PRESETS["distiller", "digits"]["protocol"].get("steps", Protocol().steps)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("student=resnet8w4", "resnet8w4"),
        ('student="resnet8w4"', "resnet8w4"),
        ("budget_evals=12", 12),
        ("budget_seconds=1.5", 1.5),
        ("baselines=false", False),
        ('teacher_taps=["layer1", "layer2"]', ("layer1", "layer2")),
        ("data=a=b", "a=b"),
    ],
)
def test_an_override_is_read_as_toml_or_as_text(text, value):
    assert getattr(make_config({}, [text]), text.partition("=")[0]) == value


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("protocol.stepz=3", "did you mean 'steps'"),
        ("populaton=3", "did you mean 'population'"),
        ("seed", "key=value"),
        ("protocol.steps=many", "-s protocol.steps"),
        ("protocol=3", "protocol"),
        ("seed.x=3", "seed"),
        ("finals=1", "--finals: expected greater than or equal to 2, got 1"),
        ("protocol.momentum=1.0", "less than 1"),
        ("fitness=beauty", "'accuracy', 'ce', 'gap' or 'gap_printed'"),
        ("task=student", "distiller"),
        ("protocol.lr=nan", "protocol.lr"),
        ("protocol.lr=inf", "protocol.lr"),
        ("budget_seconds=inf", "budget-seconds"),
    ],
)
def test_what_is_wrong_with_a_setting_is_said(text, told):
    with pytest.raises(EvokdError) as caught:
        make_config({}, [text])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(
            teacher_taps=("a.b", 'quote " and \\'),
            seed_with=("0.9*kl(logits, tau=4)", "π = 3"),
            budget_evals=7,
            budget_seconds=0.25,
            baselines=False,
            tracking_uri="sqlite:///x.db",
            protocol=Protocol(labels=0, weight_decay=1e-5, lr=1e-8),
        ),
    ],
)
def test_a_configuration_survives_its_file(config, tmp_path):
    (tmp_path / "config.toml").write_text(config.to_toml())
    assert read_config(tmp_path / "config.toml") == config
    assert tomllib.loads(config.to_toml())["protocol"]["steps"] == config.protocol.steps


def test_none_is_left_out_of_the_file():
    assert "budget_evals" not in Config().to_toml()
    assert "labels" not in Config().to_toml()
    assert "labels = 0" in Config(protocol=Protocol(labels=0)).to_toml()


def test_the_hash_is_of_what_decides_results():
    one = Config().hash()
    for apart in ({"workers": 3}, {"out": "elsewhere"}, {"tracking_uri": "none"}, {"children": "all"}, {"device": "cpu"}):
        assert Config(**apart).hash() == one
    others = [{"seed": 1}, {"space": "logits"}, {"protocol": Protocol(steps=3)}, {"fitness": "ce"}, {"seed_with": ("kd",)}]
    assert len({one, *(Config(**other).hash() for other in others)}) == 6


@pytest.mark.parametrize("raw", [b"seed = ", b"seed = -1", b"sed = 1", b"\xff\xfe", b"[protocol]\nsteps = 0"])
def test_a_broken_file_is_refused_by_name(raw, tmp_path):
    (tmp_path / "config.toml").write_bytes(raw)
    with pytest.raises(EvokdError, match=r"config\.toml"):
        read_config(tmp_path / "config.toml")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(EvokdError, match="a readable configuration"):
        read_config(tmp_path / "config.toml")


def test_on_the_table_with_a_clock_starts_are_large_unless_told_otherwise():
    tabular = {"task": "student", "evaluator": "tabular", "space": "nas_bench_201"}
    assert make_config(tabular).prior == "parameters"
    assert make_config(tabular, ["prior=none"]).prior == "none"
    assert make_config({"task": "student"}).prior == make_config(tabular | {"space": "resnet_s0"}).prior == "none"


def test_hyperband_has_brackets_in_place_of_the_funnel():
    """Li et al. (JMLR 2018), η = 3 and R = 9: brackets that begin at a ninth, at a third, and in full length."""
    hyperband, usual = make_config({"controller": "tpe_hyperband"}), make_config({})
    assert [[(round(9 * rung.steps), rung.seeds, round(3 * rung.keep)) for rung in rungs] for rungs in hyperband.brackets] == [
        [(1, 1, 1), (3, 1, 1)], [(3, 1, 1)], []]  # fmt: skip
    assert hyperband.share == 1
    assert usual.brackets == (usual.rungs,) == (usual.funnel.rungs,)
