import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from evokd.data import Split, read_data
from evokd.errors import EvokdError


def rows(split: Split) -> set[bytes]:
    return {image.tobytes() for image in split.images}


def counts(labels: np.ndarray) -> np.ndarray:
    return np.bincount(labels[labels >= 0], minlength=10)


def test_digits_are_split_in_three_without_overlap(digits):
    from sklearn.datasets import load_digits

    sizes = [len(s) for s in (digits.train, digits.validation, digits.test)]
    assert sizes == [797, 400, 600]
    parts = [rows(s) for s in (digits.train, digits.validation, digits.test)]
    images = load_digits().images
    assert len(set.union(*parts)) == sum(map(len, parts)) == len({i.tobytes() for i in images})
    assert digits.shape == (1, 8, 8)
    assert not digits.flip


def test_the_pixels_are_scikit_learns_scaled_to_a_byte(digits):
    from sklearn.datasets import load_digits

    found = {
        (np.round(i * 255 / 16).astype(np.uint8).tobytes(), int(y)) for i, y in zip(*load_digits(return_X_y=True), strict=True)
    }
    for split in (digits.train, digits.validation, digits.test):
        assert {(image.tobytes(), int(label)) for image, label in zip(split.images, split.labels, strict=True)} <= found


def test_held_out_parts_have_equally_many_of_each_class(digits):
    for split in (digits.validation, digits.test):
        assert np.ptp(counts(split.labels)) <= 1


def test_statistics_are_of_the_training_images_alone(digits):
    pixels = digits.train.images / 255
    assert digits.mean == pytest.approx([pixels.mean()], abs=1e-4)
    assert digits.std == pytest.approx([pixels.std()], abs=1e-4)


def test_reading_twice_gives_one_key(digits):
    assert read_data("digits").key == digits.key


def test_the_key_sees_every_label_and_pixel(digits):
    labels, images = digits.test.labels.copy(), digits.train.images.copy()
    labels[5] += 1
    images[0, 0, 0, 0] ^= 1
    others = [
        replace(digits, test=Split(digits.test.images, labels)),
        replace(digits, train=Split(images, digits.train.labels)),
        replace(digits, flip=True),
        replace(digits, classes=11),
        digits.with_labels(50),
    ]
    assert len({digits.key, *(d.key for d in others)}) == 6


@pytest.mark.parametrize("count", [0, 10, 37, 796])
def test_all_but_n_labels_are_hidden(digits, count):
    hidden = digits.with_labels(count).train.labels
    assert (hidden == -1).sum() == len(digits.train) - count
    kept = hidden >= 0
    assert np.array_equal(hidden[kept], digits.train.labels[kept])
    assert not count or np.ptp(counts(hidden)) <= max(1, count - 10 * counts(digits.train.labels).min())


def test_all_labels_and_no_number_hide_nothing(digits):
    assert digits.with_labels(None) is digits
    assert digits.with_labels(797) is digits


def test_labels_are_hidden_from_students_alone(digits):
    hidden = digits.with_labels(20)
    assert hidden.test is digits.test
    assert hidden.validation is digits.validation
    assert hidden.train.images is digits.train.images


def test_transfer_sets_are_balanced_and_nested(digits):
    sets = [digits.with_transfer(n) for n in (10, 60, 200)]
    assert [len(s.train) for s in sets] == [10, 60, 200]
    assert rows(sets[0].train) <= rows(sets[1].train) <= rows(sets[2].train) <= rows(digits.train)
    assert all(np.ptp(counts(s.train.labels)) == 0 for s in sets)
    assert digits.with_transfer(0) is digits


def test_rare_classes_keep_a_few_images_and_the_others_all(digits):
    rare = digits.with_rare((1, 7), 3)
    expected = counts(digits.train.labels)
    expected[[1, 7]] = 3
    assert np.array_equal(counts(rare.train.labels), expected)
    assert rows(rare.train) <= rows(digits.train)
    assert rare.test is digits.test
    assert np.array_equal(digits.with_rare((), 3).train.labels, digits.train.labels)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d.with_transfer(798), "--transfer: expected 1 to 797, got 798"),
        (lambda d: d.with_transfer(-1), "--transfer"),
        (lambda d: d.with_labels(798), "--labels"),
        (lambda d: d.with_labels(-1), "--labels"),
        (lambda d: d.with_rare((10,), 3), "classes 0 to 9"),
        (lambda d: d.with_rare((-1,), 3), "classes 0 to 9"),
        (lambda d: d.with_rare((1,), 0), "at least 1"),
    ],
)
def test_numbers_beyond_the_data_are_refused(digits, change, told):
    with pytest.raises(EvokdError, match=told):
        change(digits)


# --- npz ---------------------------------------------------------------------------------------------------------------------


def arrays(layout: str = "NHW", n: int = 60, m: int = 20, classes: int = 3) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    tail = {"NHW": (6, 5), "NHWC": (6, 5, 3), "NCHW": (3, 6, 5), "NHW1": (6, 5, 1)}[layout]
    return {
        "train_x": draw.integers(0, 256, (n, *tail)).astype(np.uint8),
        "train_y": np.arange(n) % classes,
        "test_x": draw.integers(0, 256, (m, *tail)).astype(np.uint8),
        "test_y": np.arange(m) % classes,
    }


@pytest.mark.parametrize(("layout", "channels"), [("NHW", 1), ("NHW1", 1), ("NHWC", 3), ("NCHW", 3)])
def test_npz_is_read_in_every_layout(layout, channels, tmp_path):
    given = arrays(layout)
    np.savez(tmp_path / "mine.npz", **given)
    data = read_data(str(tmp_path / "mine.npz"))
    assert (data.name, data.classes, data.shape, data.flip) == ("mine", 3, (channels, 6, 5), channels == 3)
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 30, 20)
    x = given["test_x"][4]
    for c in range(channels):
        assert np.array_equal(
            data.test.images[4, c], {"NHW": x, "NCHW": x[c]}[layout] if layout in ("NHW", "NCHW") else x[..., c]
        )
    assert np.array_equal(data.test.labels, given["test_y"])


BAD_NPZ = {
    "float": lambda a: a | {"train_x": a["train_x"] / 255.0},
    "no test": lambda a: {k: v for k, v in a.items() if k != "test_x"},
    "other length": lambda a: a | {"train_y": a["train_y"][:-1]},
    "two dimensions": lambda a: a | {"train_x": a["train_x"][:, 0]},
    "labels as table": lambda a: a | {"train_y": a["train_y"][:, None]},
    "objects": lambda a: a | {"train_y": a["train_y"].astype(object)},
    "words": lambda a: a | {"train_y": np.array(["cat", "dog", "cow"] * 20)},
    "negative labels": lambda a: a | {"train_y": a["train_y"] - 2},
    "half labels": lambda a: a | {"train_y": a["train_y"] + 0.5},
    "one class": lambda a: a | {"train_y": a["train_y"] * 0, "test_y": a["test_y"] * 0},
    "no images": lambda a: a | {"train_x": a["train_x"][:0], "train_y": a["train_y"][:0]},
    "no test images": lambda a: a | {"test_x": a["test_x"][:0], "test_y": a["test_y"][:0]},
    "one image": lambda a: a | {"train_x": a["train_x"][:1], "train_y": a["train_y"][:1]},
    "other size in test": lambda a: a | {"test_x": a["test_x"][:, :-1]},
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_a_wrong_npz_is_refused(case, tmp_path):
    np.savez(tmp_path / "bad.npz", **BAD_NPZ[case](arrays()))
    with pytest.raises(EvokdError) as caught:
        read_data(str(tmp_path / "bad.npz"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("raw", [b"", b"text", b"PK\x03\x04 torn"])
def test_a_file_that_is_no_npz_is_refused(raw, tmp_path):
    (tmp_path / "bad.npz").write_bytes(raw)
    with pytest.raises(EvokdError, match="an npz with"):
        read_data(str(tmp_path / "bad.npz"))


def test_a_torn_npz_is_refused(tmp_path):
    np.savez(tmp_path / "bad.npz", **arrays())
    raw = (tmp_path / "bad.npz").read_bytes()
    (tmp_path / "bad.npz").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(EvokdError, match="an npz with"):
        read_data(str(tmp_path / "bad.npz"))


def test_a_single_array_is_refused(tmp_path):
    np.save(tmp_path / "bad.npy", np.zeros(3))
    with pytest.raises(EvokdError, match="an npz with"):
        read_data(str(tmp_path / "bad.npy"))


# --- folders -----------------------------------------------------------------------------------------------------------------


def folder(root, held: str = "test", size=(5, 4), classes=("cat", "dog")):
    for side, count in (("train", 6), (held, 2)):
        for label, name in enumerate(classes):
            (root / side / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", size, (10 * i, 100 * label, 7)).save(root / side / name / f"{i}.png")
    return root


@pytest.mark.parametrize("held", ["test", "val"])
def test_an_image_folder_is_read(held, tmp_path):
    data = read_data(str(folder(tmp_path / "pets", held)))
    assert (data.name, data.classes, data.shape, data.flip) == ("pets", 2, (3, 4, 5), True)
    assert (len(data.train), len(data.validation), len(data.test)) == (6, 6, 4)
    assert data.test.images[:, :, 0, 0].tolist() == [[0, 0, 7], [10, 0, 7], [0, 100, 7], [10, 100, 7]]
    assert data.test.labels.tolist() == [0, 0, 1, 1]


def test_images_of_two_sizes_are_refused(tmp_path):
    root = folder(tmp_path / "pets")
    Image.new("RGB", (9, 9)).save(root / "train" / "cat" / "odd.png")
    with pytest.raises(EvokdError, match="images of one size"):
        read_data(str(root))


def test_other_sizes_in_the_test_folder_are_refused(tmp_path):
    root = folder(tmp_path / "pets")
    for path in (root / "test").rglob("*.png"):
        Image.new("RGB", (9, 9)).save(path)
    with pytest.raises(EvokdError, match="shape"):
        read_data(str(root))


def test_other_classes_in_the_test_folder_are_refused(tmp_path):
    """torchvision numbers the folders of each side by themselves: dog would be tested as cat."""
    root = folder(tmp_path / "pets", classes=("ant", "cat", "dog"))
    for path in (root / "test" / "ant").iterdir():
        path.unlink()
    (root / "test" / "ant").rmdir()
    with pytest.raises(EvokdError, match="class"):
        read_data(str(root))


@pytest.mark.parametrize("breakage", ["no train", "empty class", "torn image", "one class", "nothing"])
def test_a_wrong_folder_is_refused(breakage, tmp_path):
    root = folder(tmp_path / "pets", classes=("cat",) if breakage == "one class" else ("cat", "dog"))
    if breakage == "no train":
        (root / "train").rename(root / "training")
    if breakage == "empty class":
        (root / "train" / "emu").mkdir()
    if breakage == "torn image":
        (root / "train" / "cat" / "0.png").write_bytes(b"\x89PNG torn")
    if breakage == "nothing":
        root = tmp_path
    with pytest.raises(EvokdError):
        read_data(str(root))


def atlases(root):
    entries = {}
    for side, count in (("train", 7), ("test", 3)):
        (root / side).mkdir(parents=True)
        for label in range(2):
            sheet = Image.new("RGB", (4 * 2, 4 * 4))
            for i in range(count):
                sheet.paste((10 * i + 1, label, 0), (4 * (i % 2), 4 * (i // 2), 4 * (i % 2) + 4, 4 * (i // 2) + 4))
            name = f"{side}/{label:03d}_x.png"
            sheet.save(root / name)
            entries[name] = {"n": count}
    (root / "index.json").write_text(json.dumps({"name": "sheets", "tile": 4, "files": entries}))
    return root


def test_atlases_are_cut_row_by_row(tmp_path):
    data = read_data(str(atlases(tmp_path / "a")))
    assert (data.name, data.classes, data.shape) == ("sheets", 2, (3, 4, 4))
    assert (len(data.train), len(data.validation), len(data.test)) == (7, 7, 6)
    assert data.test.images[:, 0].reshape(6, 16).tolist() == [[10 * i + 1] * 16 for i in (0, 1, 2)] * 2
    assert data.test.labels.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    "index",
    [
        "",
        "[]",
        "{}",
        '{"tile": 4, "files": {}}',
        '{"tile": 0, "files": {"train/000_x.png": {"n": 1}}}',
        '{"tile": 4, "files": {"train/000_x.png": {"n": 1}}}',
    ],
)
def test_a_wrong_index_is_refused(index, tmp_path):
    root = atlases(tmp_path / "a")
    (root / "index.json").write_text(index)
    with pytest.raises(EvokdError):
        read_data(str(root))


def test_an_unknown_name_is_refused_with_the_closest():
    with pytest.raises(EvokdError, match="did you mean 'fashion_mnist'"):
        read_data("fashion-mnist")


def test_a_named_set_that_is_not_there_is_not_fetched(tmp_path):
    with pytest.raises(EvokdError, match="--download"):
        read_data("cifar10", root=str(tmp_path))


# --- real data ---------------------------------------------------------------------------------------------------------------


def test_fashion_mnist_has_a_thousand_of_each_class(shared_data):
    data = read_data(str(shared_data / "fashion_mnist_12k" / "fashion_12k.npz"))
    assert (data.classes, data.shape, len(data.test)) == (10, (1, 28, 28), 2000)
    assert (counts(data.train.labels) + counts(data.validation.labels)).tolist() == [1000] * 10
    assert counts(data.test.labels).tolist() == [200] * 10


@pytest.mark.slow
def test_cifar100_has_its_published_statistics(shared_data):
    data = read_data(str(shared_data / "cifar100"))
    assert (data.classes, data.shape, len(data.train) + len(data.validation), len(data.test)) == (
        100,
        (3, 32, 32),
        50_000,
        10_000,
    )
    pixels = np.concatenate([data.train.images, data.validation.images])
    assert pixels.mean((0, 2, 3)) / 255 == pytest.approx([0.5071, 0.4865, 0.4409], abs=5e-4)
    assert pixels.std((0, 2, 3)) / 255 == pytest.approx([0.2673, 0.2564, 0.2762], abs=5e-4)
    assert set(np.bincount(data.validation.labels)) == {50}
