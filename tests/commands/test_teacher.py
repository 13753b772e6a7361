import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from evokd.commands.teacher import main
from evokd.errors import EvokdError
from evokd.models.teachers import card_of, load_teacher, read_weights, write_weights
from evokd.models.zoo import build


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    main(["train", "wrn_16_1", "--recipe", "short-1", "--out", str(folder), "--device", "cpu", "--quiet", "-s", "look=5"])
    (path,) = (folder / "teachers").glob("*.safetensors")
    return path


def test_a_training_is_mirrored_epoch_by_epoch(trained):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{trained.parents[1] / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("teacher/digits").experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", trained.stem)
    assert run.data.params["recipe.look"] == "5"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train_ce")] == [1]
    with safe_open(trained, "pt") as file:
        assert f"{run.data.metrics['test_top1']:.2f}" == file.metadata()["accuracy"]


def changed(path, target, tensors=None, **card):
    with safe_open(path, "pt") as file:
        told = file.metadata() | card
    from safetensors.torch import save_file

    save_file(tensors or load_file(path), target, {k: v for k, v in told.items() if v})
    return target


def test_a_trained_teacher_tells_its_card_and_is_what_it_says(trained, capsys, digits, tmp_path):
    assert trained.name == "wrn_16_1-digits-short-1-0.safetensors"
    assert main(["check", str(trained), "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert "as its card says" in told
    assert "wrn_16_1, 174,778 parameters, hash" in told  # 180,916 less 90 classes of 65 and two colours of 144
    network, card = read_weights(trained)
    assert type(network).__name__ == "WideResNet"
    assert (card["data"], card["classes"], card["channels"]) == ("digits", "10", "1")
    teacher = load_teacher(str(trained), digits, tmp_path, 1)
    assert teacher.key == card["weights"]
    assert teacher.path == trained


def test_the_list_tells_cards_and_what_cannot_be_read(trained, capsys):
    (trained.parent / "torn.safetensors").write_bytes(b"x")
    main(["list", "--out", str(trained.parents[1])])
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("unreadable")
    assert "wrn_16_1" in second
    assert "% on test" in second
    (trained.parent / "torn.safetensors").unlink()
    main(["list", str(trained)])
    assert capsys.readouterr().out.count("\n") == 1
    with pytest.raises(EvokdError, match="an existing folder"):
        main(["list", "nowhere"])


def test_no_teachers_are_told_too(tmp_path, capsys):
    main(["list", "--out", str(tmp_path)])
    assert "no teachers under" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("card", "told"),
    [
        ({"accuracy": "99.00"}, "expected 99.00 % on test, got"),
        ({"accuracy": "high"}, "a number, got 'high'"),
        ({"weights": "0" * 16}, "the weights 0000000000000000 that its card names"),
        ({"mean": "77.9"}, "numbers for images scaled to 0…1, got '77.9'; divide by 255"),
        ({"mean": "0.5,0.5,0.5", "std": "0.2,0.2,0.2"}, "mean and std of 1 channels, as digits has, got 3 and 3"),
        ({"arch": "wrn_16_2"}, "weights of wrn_16_2, got other keys or shapes: "),
        ({"arch": "none"}, "a network, got 'none'"),
        ({"classes": "7"}, "other keys or shapes: fc.weight, fc.bias"),
        ({"classes": "many"}, "whole numbers"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_card_that_does_not_fit_is_refused(trained, tmp_path, card, told):
    path = changed(trained, tmp_path / "w.safetensors", **card)
    with pytest.raises(EvokdError) as caught:
        main(["check", str(path), "--device", "cpu"])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_card_without_data_asks_for_it(trained, tmp_path):
    with pytest.raises(EvokdError, match="--data: expected the data of"):
        main(["check", str(changed(trained, tmp_path / "w.safetensors", data=""))])


def test_a_card_never_has_a_file_run(trained, tmp_path):
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')\ndef net(classes):\n    pass\n")
    path = changed(trained, tmp_path / "w.safetensors", arch=f"{tmp_path}/evil.py:net")
    with pytest.raises(EvokdError, match=r"CIFAR ResNet|other keys"):
        read_weights(path)


def test_an_expected_accuracy_replaces_the_cards(trained, tmp_path, capsys):
    path = changed(trained, tmp_path / "w.safetensors", accuracy="")
    main(["check", str(path), "--device", "cpu"])
    assert "no accuracy to compare with" in capsys.readouterr().out
    with pytest.raises(EvokdError, match=r"expected 99\.90 % on test"):
        main(["check", str(path), "--device", "cpu", "--expect", "99.9"])
    main(["check", str(path), "--device", "cpu", "--expect", "50", "--tolerance", "50"])
    assert "as expected" in capsys.readouterr().out


def test_an_early_stopped_teacher_has_had_fewer_epochs_of_the_same_schedule(tmp_path, digits):
    few = ["--recipe", "short-3", "--out", str(tmp_path), "--device", "cpu", "--quiet"]
    main(["train", "conv3w4", *few, "--stop", "1"])
    (path,) = (tmp_path / "teachers").glob("*-stop1-*.safetensors")
    assert read_weights(path)[1]["epochs"] == "1"
    for stop in ("4", "-1"):
        with pytest.raises(EvokdError, match="--stop: expected 1 to 3"):
            main(["train", "conv3w4", *few, "--stop", stop])


def test_networks_without_a_name_are_not_trained(tmp_path):
    with pytest.raises(EvokdError, match="a network by name"):
        main(["train", "nets.py:mine", "--out", str(tmp_path)])
    with pytest.raises(EvokdError, match="NETWORK: expected a network"):
        main(["train", "nothing", "--out", str(tmp_path)])


@pytest.mark.parametrize("arch", ["resnet8x4", "vgg8", "ShuffleNetV1"])
def test_weights_of_the_zoo_tell_their_network(arch, digits, tmp_path):
    network = build(arch, 10, 1, 3)
    write_weights(tmp_path / "w.safetensors", network, card_of(network, arch, digits, digits.mean, digits.std))
    found, card = read_weights(tmp_path / "w.safetensors")
    assert card["arch"] == arch
    state = network.state_dict()
    assert all(value.equal(state[name]) for name, value in found.state_dict().items())


@pytest.mark.slow
def test_the_published_teacher_is_measured_right(shared_data, capsys):
    path = shared_data / "teachers" / "cifar100_resnet56.safetensors"
    main(["check", str(path), "--data", str(shared_data / "cifar100"), "--expect", "72.63", "--tolerance", "0.011"])
    assert "top-1 72.6" in capsys.readouterr().out
