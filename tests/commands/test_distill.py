import json
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from scipy import stats

from evokd.commands.distill import main, order_of
from evokd.errors import EvokdError
from evokd.export import FORMAT
from evokd.journal import read_events, without_clock
from evokd.models.resnet import ResNet
from evokd.models.teachers import accuracy, load_teacher, read_weights, write_weights
from evokd.training.order import Order, loss_of, read_order, trained_on
from evokd.training.recipes import short
from evokd.training.run import summarised, table

GIVEN = ["--student", "resnet8w4", "--recipe", "short-2", "--tracking-uri", "none", "--device", "cpu", "--quiet"]


@pytest.fixture(scope="module")
def home(tmp_path_factory, digits):
    """Digits of 200 training images as an npz file, and a teacher's weights."""
    folder = tmp_path_factory.mktemp("home")
    few = digits.with_transfer(200)
    arrays = {"train_x": few.train.images, "train_y": few.train.labels}
    np.savez(folder / "few.npz", **arrays, test_x=digits.test.images[:100], test_y=digits.test.labels[:100])
    teacher = load_teacher("resnet8w8", few, folder / "cache", 2)
    shutil.copy(teacher.path, folder / "teacher.safetensors")
    return folder


def call(home, out, *more):
    main([*GIVEN, "--data", str(home / "few.npz"), "--teacher", str(home / "teacher.safetensors"), "--out", str(out), *more])
    (folder,) = out.glob("*-full-few-*")
    return folder


@pytest.fixture(scope="module")
def whole(home, tmp_path_factory):
    return call(home, tmp_path_factory.mktemp("whole"), "--loss", "dist", "--seeds", "2")


def seeds(folder):
    return without_clock([e for e in read_events(folder) if e["event"] == "seed"])


def test_a_run_keeps_every_seed_its_weights_and_its_figures(whole, digits):
    found = seeds(whole)
    assert [e["number"] for e in found] == [0, 1]
    assert found[0]["seed"] != found[1]["seed"]
    summary = json.loads((whole / "summary.json").read_text())
    values = [e["metrics"]["top1"] for e in found]
    half = stats.t.ppf(0.975, 1) * statistics.stdev(values) / 2**0.5
    assert summary["figures"]["top1"]["mean"] == pytest.approx(statistics.fmean(values))
    assert summary["figures"]["top1"]["high"] - summary["figures"]["top1"]["mean"] == pytest.approx(half)
    assert {"top1", "top5", "ece"} == set(summary["teacher"])
    lines = (whole / "seeds.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["number", "0", "1"]
    assert not list(whole.rglob("checkpoint*"))
    network, card = read_weights(whole / "seeds" / "1" / "student.safetensors")
    mean, std = (tuple(float(v) for v in card[name].split(",")) for name in ("mean", "std"))
    test = digits.test.take(np.arange(100))
    assert accuracy(network, test, mean, std) == pytest.approx(values[1], abs=1e-9)
    assert card["accuracy"] == f"{values[1]:.2f}"


def test_a_run_that_was_killed_goes_on_to_the_same_figures(home, whole, tmp_path, monkeypatch):
    """Killed after the first epoch of the second seed."""
    from evokd.training.state import State

    save, count = State.save, []

    def dies(state, path, rows):
        save(state, path, rows)
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(State, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        call(home, tmp_path, "--loss", "dist", "--seeds", "2")
    (folder,) = tmp_path.glob("*-full-*")
    assert [e["number"] for e in seeds(folder)] == [0]
    assert (folder / "seeds" / "1" / "checkpoint.safetensors").exists()
    monkeypatch.setattr(State, "save", save)
    main(["--resume", str(folder), "--tracking-uri", "none", "--device", "cpu", "--quiet"])
    assert seeds(folder) == seeds(whole)
    for number in ("0", "1"):
        paths = [each / "seeds" / number / "student.safetensors" for each in (folder, whole)]
        assert paths[0].read_bytes()[-4000:] == paths[1].read_bytes()[-4000:]


@pytest.mark.slow
def test_sigkill_keeps_every_finished_seed(home, whole, tmp_path):
    """Killed by the system as soon as the first seed is told, gone on with in this process."""
    options = ["--data", str(home / "few.npz"), "--teacher", str(home / "teacher.safetensors"), "--out", str(tmp_path)]
    call_it = "import sys; from evokd.commands.distill import main; main(sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", call_it, *GIVEN, *options, "--loss", "dist", "--seeds", "2"])
    while not list(tmp_path.glob("*-full-*/seeds/0/student.safetensors")):
        time.sleep(0.02)
        assert process.poll() is None
    time.sleep(0.1)
    process.kill()
    process.wait()
    (folder,) = tmp_path.glob("*-full-*")
    before = seeds(folder)
    main(["--resume", str(folder), "--tracking-uri", "none", "--device", "cpu", "--quiet"])
    assert seeds(folder)[: len(before)] == before
    assert seeds(folder) == seeds(whole)


def test_a_recorded_teacher_gives_the_figures_of_a_live_one(home, tmp_path, monkeypatch, capsys):
    """The same fixed views, recorded once for all seeds, or seen live where recordings would be too large."""
    options = [o for o in GIVEN if o != "--quiet"]
    where = ["--data", str(home / "few.npz"), "--teacher", str(home / "teacher.safetensors"), "-s", "views=2", "--seeds", "2"]
    for loss in ("kd", "l2(features[-1]) + l2(teacher_head)"):
        found = []
        for cap in (1.0, 0.0):
            monkeypatch.setattr("evokd.training.order.CAP_GIB", cap)
            main([*options, *where, "--loss", loss, "--out", str(tmp_path / f"{cap}{len(loss)}")])
            assert ("replayed on 2 views" in capsys.readouterr().out) == (cap > 0)
            (folder,) = (tmp_path / f"{cap}{len(loss)}").glob("*-full-*")
            found.append(seeds(folder))
        for recorded, live in zip(*found, strict=True):
            pairs = [(recorded["curve"][-1][name], live["curve"][-1][name]) for name in ("ce", "distill")]
            assert all(a == pytest.approx(b, rel=1e-3) for a, b in pairs)
            assert recorded["metrics"]["agreement"] == pytest.approx(live["metrics"]["agreement"], abs=1.1)


def test_more_seeds_may_be_added_and_those_done_stay(whole, tmp_path, capsys):
    folder = tmp_path / whole.name
    shutil.copytree(whole, folder)
    before = (folder / "seeds" / "0" / "student.safetensors").stat().st_mtime_ns
    main(["--resume", str(folder), "--seeds", "3", "--tracking-uri", "none", "--device", "cpu"])
    assert [e["number"] for e in seeds(folder)] == [0, 1, 2]
    assert seeds(folder)[:2] == seeds(whole)
    assert (folder / "seeds" / "0" / "student.safetensors").stat().st_mtime_ns == before
    told = capsys.readouterr().out
    assert "test, 3 seeds" in told
    assert "it flatters" in told
    assert "teacher teacher: top-1" in told


def test_plain_training_needs_no_teacher(home, tmp_path):
    main([*GIVEN, "--data", str(home / "few.npz"), "--loss", "none", "--seeds", "1", "--out", str(tmp_path)])
    (folder,) = tmp_path.glob("*-full-*")
    assert "agreement" not in seeds(folder)[0]["metrics"]
    assert all(row["distill"] == 0 for row in seeds(folder)[0]["curve"])
    assert "low" not in json.loads((folder / "summary.json").read_text())["figures"]["top1"]


def test_a_seed_that_diverges_is_told_and_the_others_stay(home, tmp_path, capsys):
    options = [o for o in GIVEN if o != "--quiet"]
    where = ["--data", str(home / "few.npz"), "--teacher", str(home / "teacher.safetensors"), "--out", str(tmp_path)]
    main([*options, *where, "--loss", "1e38*l2(pow2(logits))", "--seeds", "1", "-s", "clip=0"])
    (folder,) = tmp_path.glob("*-full-*")
    assert seeds(folder)[0]["status"] == "diverged"
    assert "1 of 1 seeds diverged" in capsys.readouterr().out


def test_runs_are_mirrored_in_mlflow(home, tmp_path):
    import mlflow

    uri = f"sqlite:///{tmp_path / 'm.db'}"
    where = ["--data", str(home / "few.npz"), "--loss", "none", "--seeds", "1", "--out", str(tmp_path)]
    main([*where, "--recipe", "short-1", "--student", "conv3w4", "--tracking-uri", uri, "--device", "cpu", "--quiet"])
    client = mlflow.MlflowClient(uri)
    (experiment,) = [e for e in client.search_experiments() if e.name.startswith("full/few")]
    runs = {r.data.tags["evokd.kind"]: r for r in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"full", "seed"}
    assert runs["full"].data.params["recipe.epochs"] == "1"
    assert runs["full"].data.metrics["top1"] == runs["seed"].data.metrics["top1"]
    assert runs["full"].info.status == "FINISHED"


def test_gamma_is_what_goes_with_the_loss(tmp_path):
    path = tmp_path / "loss.json"
    body = {"format": FORMAT, "text": "l2(logits)", "tree": ["loss1", "term", "1", "no", "l2:classes", "logits"], "gamma": 0.25}
    path.write_text(json.dumps(body))
    assert loss_of(str(path), None) == ("l2(logits)", 0.25)
    assert loss_of(str(path), 2.0) == ("l2(logits)", 2.0)
    assert loss_of("kd", None) == ("0.9*kl(logits, tau=4)", 0.1)
    assert loss_of("sp", None)[1] == 1.0
    assert loss_of("3*kl(logits, tau=2)", None) == ("3*kl(logits, tau=2)", 1.0)
    assert loss_of("none", None) == ("", 1.0)


def test_an_order_is_read_back_as_it_was(tmp_path):
    order = Order("digits", "conv3w8", replace(short(4), milestones=(1, 2)), "t", "l2(logits)", 0.5, 3, 10, 5, True, ("a", "b"))
    (tmp_path / "order.json").write_text(order.text())
    assert read_order(tmp_path) == order


def test_the_whole_training_set_is_train_and_validation(digits):
    order = Order("digits", "conv3w8", short(1), whole=True)
    assert len(trained_on(digits, order).train) == len(digits.train) + len(digits.validation)
    assert trained_on(digits, replace(order, whole=False)) is digits
    some = trained_on(digits, replace(order, whole=False, transfer=100, labels=50)).train
    assert (len(some), (some.labels >= 0).sum()) == (100, 50)


def test_a_pair_names_both_networks():
    given = {
        "pair": "resnet32x4-ShuffleNetV2",
        "data": "digits",
        "recipe": "crd-240",
        "loss": "kd",
        "seed": 0,
        "teacher_epochs": 1,
    }
    order = order_of(given | {"teacher": "mine.safetensors"})
    assert (order.teacher, order.student, order.recipe.lr) == ("mine.safetensors", "ShuffleNetV2", 0.01)
    assert order_of(given).teacher == "resnet32x4"


def test_figures_that_diverged_seeds_lack_are_left_out_of_the_table():
    rows = [{"status": "ok", "metrics": {"top1": 10.0}}, {"status": "diverged", "metrics": {}, "reason": "loss nan"}]
    lines = "\n".join(table(rows, "", {}))
    assert "10.00" in lines
    assert "1 of 2 seeds diverged and are in no figure: loss nan" in lines
    assert summarised([]) == {}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--loss", "l2(features[-7])"], "position features[-7]: expected a tap that the network shows"),
        (["--loss", "ab", "--student", "wrn_16_1"], "position pre_relu[-1]: expected a tap that the network shows"),
        (["--loss", "kl(logits"], "--loss"),
        (["--teacher", "none"], "--teacher: expected a teacher, for a loss"),
        (["--loss", "none", "--gamma", "0"], "--gamma"),
        (["--gamma", "-1"], "--gamma: expected at least 0"),
        (["--gamma", "nan"], "--gamma: expected at least 0"),
        (["--seeds", "0"], "--seeds"),
        (["--student", "nothing"], "--student: expected a network"),
        (["--pair", "a-b"], "--pair"),
        (["--transfer", "100000"], "--transfer"),
        (["--data", "nowhere"], "--data"),
        (["--device", "tpu"], "--device"),
        (["--resume", "nowhere"], "--resume: expected no other option than"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_work_is_one_line(home, tmp_path, more, told):
    with pytest.raises(EvokdError) as caught:
        call(home, tmp_path, *more)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*-full-*"))


def test_a_teacher_of_other_classes_or_a_torn_one_is_one_line(home, tmp_path):
    bad = tmp_path / "bad.safetensors"
    write_weights(bad, ResNet(8, 4, 7, 1), {})
    with pytest.raises(EvokdError, match="expected 10 classes, as few has"):
        call(home, tmp_path, "--teacher", str(bad))
    bad.write_bytes((home / "teacher.safetensors").read_bytes()[:-100])
    with pytest.raises(EvokdError, match="a whole safetensors file"):
        call(home, tmp_path, "--teacher", str(bad))
    save_file({**ResNet(8, 4, 10, 1).state_dict(), "more": ResNet(8, 4, 10, 1).fc.weight.detach()}, bad)
    with pytest.raises(EvokdError, match="other keys or shapes: more"):
        call(home, tmp_path, "--teacher", str(bad))


def test_images_of_mixed_sizes_and_an_empty_split_are_one_line(home, tmp_path):
    def picture(path: Path, side: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((side, side, 3), 9, np.uint8)).save(path)

    for split in ("train", "test"):
        for name in ("a", "b"):
            for i in range(4):
                picture(tmp_path / "d" / split / name / f"{i}.png", 8)
    picture(tmp_path / "d" / "train" / "a" / "odd.png", 9)
    with pytest.raises(EvokdError, match="images of one size"):
        call(home, tmp_path, "--data", str(tmp_path / "d"))
    shutil.rmtree(tmp_path / "d" / "test")
    for name in ("a", "b"):
        (tmp_path / "d" / "test" / name).mkdir(parents=True)
    (tmp_path / "d" / "train" / "a" / "odd.png").unlink()
    with pytest.raises(EvokdError) as caught:
        call(home, tmp_path, "--data", str(tmp_path / "d"))
    assert "\n" not in str(caught.value)


def test_the_recipe_for_imagenet_starts_goes_on_and_ends_on_a_folder_of_images(tmp_path, capsys):
    draw = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 3)):
        for label in range(2):
            (tmp_path / "d" / split / str(label)).mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 120, (16, 16, 3)) + 120 * label
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "d" / split / str(label) / f"{i}.png")
    given = ["--data", str(tmp_path / "d"), "--recipe", "imagenet-100ep", "-s", "epochs=2", "-s", "batch=8", "--loss", "none"]
    main([*given, "--student", "resnet8w8", "--seeds", "1", "--out", str(tmp_path), "--tracking-uri", "none", "--quiet"])
    (folder,) = tmp_path.glob("*-full-d-*")
    assert len(seeds(folder)[0]["curve"]) == 2
    main(["--resume", str(folder), "--seeds", "2", "--tracking-uri", "none"])
    assert len(seeds(folder)) == 2
    assert set(json.loads((folder / "summary.json").read_text())["figures"]) >= {"top1", "top5", "best_top1", "ece", "seconds"}
    assert "top-1 %, last epoch" in capsys.readouterr().out


def test_a_run_does_not_go_on_with_other_data_or_a_broken_order(home, whole, tmp_path):
    folder = tmp_path / whole.name
    shutil.copytree(whole, folder)
    order = read_order(folder)
    (folder / "order.json").write_text(replace(order, transfer=50).text())
    with pytest.raises(EvokdError, match="--resume: expected the order that"):
        main(["--resume", str(folder), "--tracking-uri", "none", "--device", "cpu", "--quiet"])
    (folder / "order.json").write_text(order.text())
    other = tmp_path / "few.npz"
    with np.load(home / "few.npz") as arrays:
        np.savez(other, **{name: value[::-1] for name, value in arrays.items()})
    kept = (home / "few.npz").read_bytes()
    try:
        shutil.copy(other, home / "few.npz")
        with pytest.raises(EvokdError, match="--resume: expected the data that"):
            main(["--resume", str(folder), "--tracking-uri", "none", "--device", "cpu", "--quiet"])
    finally:
        (home / "few.npz").write_bytes(kept)
    (folder / "order.json").write_text("{}")
    with pytest.raises(EvokdError, match="--resume: expected a run of evokd distill"):
        main(["--resume", str(folder), "--quiet"])
