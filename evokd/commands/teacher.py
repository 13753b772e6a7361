"""`evokd teacher`: train one, list them, or check one against its card and its data."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evokd.errors import EvokdError

if TYPE_CHECKING:
    from evokd.tracker import Tracker
    from evokd.training.recipes import Recipe
    from evokd.training.seed import Trained

CLOSE = 0.1  # points by which the accuracy may differ from the card's: other devices round otherwise


def main(arguments: Sequence[str]) -> int:
    given = _options().parse_args(arguments)
    return given.run(given)


def train(given: argparse.Namespace) -> int:
    """Plain training under a recipe; the weights with their card."""
    from evokd.data import read_data
    from evokd.models.teachers import card_of, write_weights
    from evokd.models.zoo import build
    from evokd.problem import check_writable, pick_device
    from evokd.report.terminal import Terminal
    from evokd.tracker import open_tracker
    from evokd.training.order import Order, trained_on
    from evokd.training.recipes import read_recipe
    from evokd.training.seed import FullTraining

    recipe = read_recipe(given.recipe, given.network, given.overrides)
    if ".py:" in given.network:
        raise EvokdError("evokd teacher train", "a network by name, which its card can tell", given.network)
    if not 1 <= (given.stop or recipe.epochs) <= recipe.epochs:
        raise EvokdError("--stop", f"1 to {recipe.epochs}, the epochs of {recipe.name}", str(given.stop))
    device, data = pick_device(given.device), read_data(given.data, given.download)
    data = trained_on(data, Order(given.data, given.network, recipe, whole=given.whole))
    build(given.network, data.classes, data.shape[0], 0, "NETWORK")
    stopped = f"-stop{given.stop}" if given.stop else ""
    name = f"{given.network.replace(':', '_')}-{data.name}-{recipe.name}{stopped}-{given.seed}"
    path = Path(given.to) if given.to else Path(given.out) / "teachers" / f"{name}.safetensors"
    check_writable(path.parent)
    terminal = Terminal(given.quiet)
    checkpoint = path.with_suffix(".checkpoint")
    tracker = open_tracker(given.tracking_uri, Path(given.out), f"teacher/{data.name}", terminal.warn)
    with _mirrored(tracker, path.stem, vars(given), recipe) as tell:
        trained = FullTraining(data, given.network, recipe, device=device).train(
            given.seed, checkpoint, terminal.status, given.stop
        )
        tell(trained)
    terminal.done()
    more = {
        "accuracy": f"{trained.figures['top1']:.2f}",
        "split": "test",
        "recipe": recipe.name,
        "epochs": given.stop or recipe.epochs,
    }
    card = card_of(trained.network, given.network, data, data.mean, data.std, **more, seed=given.seed)
    write_weights(path, trained.network.cpu(), card)
    checkpoint.unlink(missing_ok=True)
    terminal.say(f"{given.network} · {data.name}: {trained.figures['top1']:.2f} % on test\n{path}")
    return 0


@contextmanager
def _mirrored(tracker: Tracker, name: str, options: Mapping[str, Any], recipe: Recipe) -> Iterator[Callable[[Trained], None]]:
    """One training in MLflow; yields what takes its end: curves by epoch, and figures on test."""
    from dataclasses import asdict

    from evokd.folder import commit
    from evokd.progress import by_epoch
    from evokd.store import Generation

    def tell(trained: Trained) -> None:
        tracker.generation(Generation(len(trained.epochs), by_epoch(trained.epochs)))
        tracker.finish("FINISHED", {f"test_{name}": value for name, value in trained.figures.items()})

    params = {name: options[name] for name in ("network", "data", "seed", "stop", "whole")}
    params |= {f"recipe.{field}": value for field, value in asdict(recipe).items()}
    tracker.start(name, params, {"evokd.kind": "teacher", "evokd.git": commit(), "evokd.state": "going"}, [])
    with tracker.until_the_end():
        yield tell


def show(given: argparse.Namespace) -> int:
    """One line a file: what its card tells."""
    homes = [Path(given.out) / "teachers", Path(given.out) / "cache" / "teachers"]
    files = [path for home in map(Path, given.folders or homes) for path in _files(home, bool(given.folders))]
    width = max([len(str(path)) for path in files], default=0)
    print("\n".join(f"{path!s:<{width}}  {_told(path)}" for path in files) or "no teachers under " + ", ".join(map(str, homes)))
    return 0


def _files(home: Path, named: bool) -> list[Path]:
    if named and not home.exists():
        raise EvokdError("evokd teacher list", "an existing folder or file", repr(str(home)))
    return [home] if home.is_file() else sorted(home.glob("*.safetensors"))


def _told(path: Path) -> str:
    """What the card of a file says, without reading its weights."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            card = file.metadata() or {}
    except (SafetensorError, OSError):
        return "unreadable"
    accuracy = f"{card['accuracy']} % on {card.get('split', 'test')}" if "accuracy" in card else "accuracy not told"
    size = f"{path.stat().st_size / 2**20:.1f} MiB"
    return f"{card.get('arch', 'no card'):<28} {card.get('data', '–'):<12} {accuracy:<20} {card.get('weights', 'no hash'):<17} {size}"


def check(given: argparse.Namespace) -> int:
    """Weights, hash, classes and normalisation, then the accuracy on test, against what the card says or `--expect`."""
    from evokd.data import read_data
    from evokd.models.teachers import read_weights, weights_key
    from evokd.models.zoo import parameters
    from evokd.problem import pick_device
    from evokd.training.order import Order, teacher_of
    from evokd.training.recipes import short
    from evokd.training.seed import FullTraining

    device, path = pick_device(given.device), Path(given.file)
    network, card = read_weights(path)
    spec = given.data or card.get("data", "")
    if not spec:
        raise EvokdError("--data", f"the data of {path}, which its card does not name", "none")
    data, recipe = read_data(spec, given.download), short(1)
    teacher = teacher_of(Order(spec, "", recipe, str(path)), data, Path(given.out), lambda line: None, device)
    training = FullTraining(data, lambda classes: teacher.network, recipe, teacher=teacher, device=device)
    found, wanted = training.told(teacher.network), _wanted(given.expect, card, path)
    measured = found["top1"]
    print(f"{path}: {card.get('arch', 'no card')}, {parameters(network):,} parameters, hash {weights_key(network)}")
    print(f"normalisation  mean {_numbers(teacher.mean)}, std {_numbers(teacher.std)}{_apart(teacher, data)}")
    figures = f"top-1 {measured:.2f} %, top-5 {found['top5']:.2f} %, ECE {found['ece']:.2f} %"
    print(f"{data.name}, {len(data.test)} test images  {figures}")
    if wanted is not None and abs(measured - wanted) > given.tolerance:
        hint = "other data, or another normalisation than it was trained with"
        raise EvokdError(str(path), f"{wanted:.2f} % on test", f"{measured:.2f} %", hint)
    print(
        "as its card says"
        if wanted is not None and given.expect is None
        else "as expected"
        if wanted is not None
        else "no accuracy to compare with"
    )
    return 0


def _wanted(expected: float | None, card: dict[str, str], path: Path) -> float | None:
    if expected is not None:
        return expected
    try:
        return float(card["accuracy"]) if card.get("split", "test") == "test" and "accuracy" in card else None
    except ValueError:
        raise EvokdError(f"{path}, accuracy", "a number", repr(card["accuracy"])[:40]) from None


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4f}" for value in values)


def _apart(teacher, data) -> str:
    """A remark where the card is far from the data's own statistics."""
    far = any(abs(a - b) > 0.1 for a, b in zip((*teacher.mean, *teacher.std), (*data.mean, *data.std), strict=True))
    return f"; the data's own: mean {_numbers(data.mean)}, std {_numbers(data.std)}" if far else ""


def _options() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="evokd teacher", description="A teacher is its weights plus a card.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    trains = commands.add_parser(
        "train", help="train one plainly under a recipe", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    trains.set_defaults(run=train)
    trains.add_argument("network", metavar="NETWORK", help="by name, such as resnet56 or wrn_40_2")
    trains.add_argument("--recipe", default="short-30", metavar="R", help="crd-240, imagenet-100ep, vit-300 or short-N")
    trains.add_argument("-s", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    trains.add_argument("--stop", type=int, metavar="N", help="after N epochs of the recipe: an early-stopped teacher (ESKD)")
    trains.add_argument(
        "--whole", action="store_true", help="on the validation images too; a search must not select on them then"
    )
    trains.add_argument("--seed", type=int, default=0, metavar="N")
    trains.add_argument("--to", metavar="FILE.safetensors", help="OUT/teachers/NAME.safetensors if not given")
    trains.add_argument("--tracking-uri", metavar="URI", help="MLflow; none switches it off")
    trains.add_argument("--quiet", action="store_true")
    lists = commands.add_parser("list", help="what the cards under OUT, or in the named folders, tell")
    lists.set_defaults(run=show)
    lists.add_argument("folders", nargs="*", metavar="FOLDER|FILE")
    checks = commands.add_parser("check", help="weights, hash, normalisation, and the accuracy on test")
    checks.set_defaults(run=check)
    checks.add_argument("file", metavar="FILE.safetensors")
    checks.add_argument("--expect", type=float, metavar="PERCENT", help="instead of what the card says")
    checks.add_argument("--tolerance", type=float, default=CLOSE, metavar="POINTS")
    for each in (trains, checks):
        each.add_argument("--data", default="digits" if each is trains else None, metavar="D", help="name, npz file or folder")
        each.add_argument("--download", action="store_true", help="allow torchvision to fetch the data set")
        each.add_argument("--device", default="auto", metavar="D")
    for each in (trains, lists, checks):
        each.add_argument("--out", default="runs", metavar="DIR")
    return top
