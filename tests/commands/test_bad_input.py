"""What a user can get wrong about teachers, data and losses, by the command line: one line, exit code 2, and no run begun."""

import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from evokd.commands import main
from evokd.models.resnet import ResNet
from evokd.models.teachers import write_weights

COMMANDS = {
    "distill": ["distill", "--student", "conv3w4", "--recipe", "short-1", "--seeds", "1", "--quiet"],
    "evolve": ["evolve", "distiller", "--student", "conv3w4", "--quiet"],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory, digits):
    """Forty digits as npz, and an untrained teacher with a sound card."""
    folder = tmp_path_factory.mktemp("home")
    part = digits.train.take(np.arange(60))
    np.savez(folder / "few.npz", train_x=part.images, train_y=part.labels, test_x=part.images[:20], test_y=part.labels[:20])
    write_weights(folder / "t.safetensors", ResNet(8, 8, 10, 1), {"mean": "0.3", "std": "0.4"})
    return folder


def refused(command, home, tmp_path, capsys, *more, teacher=None, data=None):
    """The one line that a command prints, without its name."""
    given = ["--data", str(data or home / "few.npz"), "--teacher", str(teacher or home / "t.safetensors")]
    code = main([*COMMANDS[command], *given, "--device", "cpu", "--tracking-uri", "none", "--out", str(tmp_path / "out"), *more])
    told = capsys.readouterr().err
    assert code == 2
    assert told.startswith("evokd: ")
    assert told.count("\n") == 1
    assert not list((tmp_path / "out").glob("20*"))
    return told


def broken_teacher(case, home, path):
    state = load_file(home / "t.safetensors")
    card = {"mean": "0.3", "std": "0.4"}
    if case == "other keys":
        state["layer9.weight"] = state.pop("layer2.0.bn1.weight")
    elif case == "another shape":
        state["layer3.0.bn2.bias"] = state["layer3.0.bn2.bias"][:3].clone()
    elif case == "other classes":
        state = ResNet(8, 8, 7, 1).state_dict()
    elif case.startswith("card"):
        card |= {"card of colours": {"mean": "0.5,0.5,0.5"}, "card of bytes": {"mean": "77"}, "card of words": {"std": "wide"}}[
            case
        ]
    save_file(state, path, card)
    raw = path.read_bytes()
    if case in ("truncated", "corrupt", "no tensors"):
        path.write_bytes({"truncated": raw[:-50], "corrupt": b"\xff" * 64 + raw[64:], "no tensors": b""}[case])
    return path


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("other keys", "weights of resnet8w8, got other keys or shapes: layer2.0.bn1.weight, layer9.weight"),
        ("another shape", "got other keys or shapes: layer3.0.bn2.bias"),
        ("other classes", "expected 10 classes, as few has, got (7,)"),
        ("card of colours", "mean and std of 1 channels, as few has, got 3 and 1"),
        ("card of bytes", "numbers for images scaled to 0…1, got '77'; divide by 255"),
        ("card of words", "std: expected numbers with commas, got 'wide'"),
        ("truncated", "a whole safetensors file"),
        ("corrupt", "a whole safetensors file"),
        ("no tensors", "a whole safetensors file"),
    ],
)
def test_a_teacher_that_does_not_fit(command, case, told, home, tmp_path, capsys):
    path = broken_teacher(case, home, tmp_path / "bad.safetensors")
    assert told in refused(command, home, tmp_path, capsys, teacher=path)


def images(folder, odd=None):
    for split in ("train", "test"):
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True)
            for i in range(4):
                side = 9 if (split, label, i) == odd else 8
                Image.fromarray(np.full((side, side, 3), 9, np.uint8)).save(folder / split / label / f"{i}.png")
    return folder


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("mixed sizes", "train: expected images of one size, got (8, 8, 3) and (9, 9, 3); resize them first"),
        ("empty folder", "test: expected readable images"),
        ("empty class", "test: expected readable images"),
        ("empty npz", "expected images in the test split, got 0"),
        ("torn image", "train: expected readable images"),
    ],
)
def test_data_that_cannot_be_used(command, case, told, home, tmp_path, capsys):
    path = images(tmp_path / "d", ("train", "b", 2) if case == "mixed sizes" else None)
    if case == "empty folder":
        for label in ("a", "b"):
            shutil.rmtree(path / "test" / label)
            (path / "test" / label).mkdir()
    elif case == "empty class":
        shutil.rmtree(path / "test" / "b")
        (path / "test" / "b").mkdir()
    elif case == "torn image":
        (path / "train" / "a" / "0.png").write_bytes((path / "train" / "a" / "0.png").read_bytes()[:40])
    elif case == "empty npz":
        path, empty = tmp_path / "e.npz", np.zeros((0, 8, 8), np.uint8)
        labels = np.arange(4) % 2
        np.savez(path, train_x=np.zeros((4, 8, 8), np.uint8), train_y=labels, test_x=empty, test_y=labels[:0])
    assert told in refused(command, home, tmp_path, capsys, data=path)


@pytest.mark.parametrize(
    ("command", "more"),
    [("distill", ["--loss", "l2(tokens)"]), ("distill", ["--loss", "minilm"]), ("evolve", ["--seed-with", "l2(tokens)"])],
)
def test_a_loss_that_reads_what_the_pair_does_not_show(command, more, home, tmp_path, capsys):
    told = refused(command, home, tmp_path, capsys, *more)
    assert "expected a tap that the network shows, got nothing; it has logits, embedding" in told


def test_check_tells_the_same_of_a_teacher(home, tmp_path, capsys):
    path = broken_teacher("other keys", home, tmp_path / "bad.safetensors")
    assert main(["teacher", "check", str(path), "--data", str(home / "few.npz"), "--device", "cpu"]) == 2
    assert "layer2.0.bn1.weight, layer9.weight" in capsys.readouterr().err
