"""A user's own operator: one decorated function in a file of theirs, checked at the door before it joins the language.

    from evokd.losses import transform

    @transform({"maps": "maps"}, lambda b, a: b.let(a.sizes, lambda *i: b.sp.atan(a[i])), keeps_shape=True)
    def arctan(f):
        return f.atan()

Files are run only where the command line or code names them (`--operators path.py:arctan`); a space file may use the bare name.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evokd.errors import EvokdError
from evokd.losses.language import ALL, learn_operator
from evokd.losses.operators import CLASSES, COLUMNS, KINDS, MAPS, RELATION, ROWS, TOKENS, Distance, Transform

SHAPES = {MAPS: (4, 3, 4, 4), TOKENS: (4, 3, 5), ROWS: (4, 6), CLASSES: (4, 7), RELATION: (4, 4), COLUMNS: (6, 4)}
TAU = 3.0
_LOADED: dict[str, str] = {}  # path.py:fn → hash of the file it was loaded from


def load_operators(specs: Iterable[str]) -> str:
    """Make users' operators part of the language of this process; a hash of their files.

    Args:
        specs: `path.py:fn`, `fn` decorated with `transform` or `distance`.

    Raises:
        EvokdError: no such file or function, a name that is taken, or an operator that does not keep its promises.
    """
    hashes = []
    for spec in specs:
        path, _, name = spec.rpartition(":")
        if not path.endswith(".py") or not Path(path).is_file():
            raise EvokdError("--operators", "path.py:function", repr(spec))
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        if _LOADED.get(spec) != digest:
            operator = _read(Path(path), name)
            check(operator, f"--operators {spec}")
            learn_operator(operator)
            _LOADED[spec] = digest
        hashes.append(digest)
    return hashlib.sha256("".join(hashes).encode()).hexdigest() if hashes else ""


def _read(path: Path, name: str) -> Transform | Distance:
    module_spec = importlib.util.spec_from_file_location(f"evokd_operators_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:  # a user's file may raise anything
        raise EvokdError(f"--operators {path}", "a file that runs", f"{type(error).__name__}: {error}"[:120]) from None
    operator = getattr(module, name, None)
    if not isinstance(operator, Transform | Distance):
        hint = "decorate the function with evokd.losses.transform or evokd.losses.distance"
        raise EvokdError(f"--operators {path}:{name}", "a transform or a distance", type(operator).__name__, hint)
    return operator


def check(operator: Transform | Distance, where: str) -> None:
    """Kinds, shapes, finite value and gradient, determinism, and the formula against the function.

    Raises:
        EvokdError: the first promise that is broken.
    """
    if operator.name in ALL:
        raise EvokdError(where, "a name that no operator has", operator.name)
    if operator.params not in ((), ("tau",)):
        raise EvokdError(where, "params () or ('tau',)", repr(operator.params))
    transform = isinstance(operator, Transform)
    for kinds in operator.kinds:
        for kind in (*kinds.split(","), *([operator.kinds[kinds]] if transform else [])):
            if kind not in SHAPES:
                raise EvokdError(where, f"kinds among {', '.join(KINDS)}", repr(kind))
        (_check_transform if transform else _check_distance)(operator, kinds, where)


def _inputs(kinds: Iterable[str]) -> Iterator[Tensor]:
    draw = torch.Generator().manual_seed(0)
    for kind in kinds:
        yield torch.randn(SHAPES[kind], generator=draw, dtype=torch.float64).requires_grad_()


def _check_transform(operator: Transform, kinds: str, where: str) -> None:
    inputs, extra = [*_inputs(kinds.split(","))], _extra(operator, SHAPES[kinds.split(",")[0]])
    out = _called(lambda: operator.fn(*inputs, *extra, *[TAU] * len(operator.params)), where)
    result = operator.kinds[kinds]
    if out.dim() != len(SHAPES[result]) or (result != COLUMNS and out.shape[0] != inputs[0].shape[0]):
        raise EvokdError(where, f"{result} {SHAPES[result]}-like from {kinds}", str(tuple(out.shape)))
    if operator.keeps_shape and out.shape != inputs[0].shape:
        raise EvokdError(where, f"the shape kept, {tuple(inputs[0].shape)}", str(tuple(out.shape)))
    _check_numbers(out, inputs, where)
    told = _tabulated(operator, [x.detach().numpy() for x in inputs], [x.numpy() for x in extra], where)
    _check_formula(out.detach().numpy(), told, where)


def _check_distance(operator: Distance, kind: str, where: str) -> None:
    pair = [*_inputs([kind, kind])]
    out = _called(lambda: operator.fn(*pair, *[TAU] * len(operator.params)), where)
    if operator.per_sample and (not out.dim() or out.shape[0] != pair[0].shape[0]):
        raise EvokdError(where, f"{pair[0].shape[0]} values along axis 0, or per_sample=False", str(tuple(out.shape)))
    _check_numbers(out, pair[:1], where)
    told = _tabulated(operator, [x.detach().numpy() for x in pair], [], where)
    _check_formula(out.detach().numpy().mean(), np.mean(told), where)


def _extra(operator: Transform, shape: tuple[int, ...]) -> list[Tensor]:
    if operator.labels:
        return [torch.tensor([0, 2, -1, 1])]
    if operator.mask:
        return [torch.ones([size if axis in operator.mask[1] else 1 for axis, size in enumerate(shape)], dtype=torch.float64)]
    return []


def _called(call: Callable[[], Tensor], where: str) -> Tensor:
    try:
        first, second = call(), call()
    except Exception as error:  # a user's operator may raise anything
        raise EvokdError(where, "a function that runs", f"{type(error).__name__}: {error}"[:120]) from None
    if not isinstance(first, Tensor):
        raise EvokdError(where, "a tensor", type(first).__name__)
    if not torch.equal(first, second):
        raise EvokdError(where, "the same value for the same input", "another one", "draw masks with mask=(keep, axes)")
    return first


def _check_numbers(out: Tensor, inputs: list[Tensor], where: str) -> None:
    if not torch.isfinite(out).all():
        raise EvokdError(where, "finite values", "nan or infinity")
    if not out.requires_grad:
        raise EvokdError(where, "a gradient", "none")
    # a sum may be constant (softmax), so entries are weighed
    gradients = torch.autograd.grad((out * torch.arange(1, out.numel() + 1).view(out.shape)).sum(), inputs, allow_unused=True)
    if any(g is None or not torch.isfinite(g).all() for g in gradients) or not any(g.abs().sum() > 0 for g in gradients):
        raise EvokdError(where, "a finite gradient that is not 0", "another one")


def _tabulated(operator: Transform | Distance, inputs: list[np.ndarray], extra: list[np.ndarray], where: str) -> np.ndarray:
    from evokd.losses.formula import tabulate

    try:
        return tabulate(operator.formula, inputs, extra, [TAU] * len(operator.params), getattr(operator, "mask", None))
    except Exception as error:  # a user's formula may raise anything
        raise EvokdError(where, "a formula that can be evaluated", f"{type(error).__name__}: {error}"[:120]) from None


def _check_formula(made: np.ndarray, told: np.ndarray, where: str) -> None:
    gap = np.abs(made - told).max() if np.shape(made) == np.shape(told) else np.inf
    if not gap <= 1e-6 * max(1.0, float(np.abs(made).max())):
        raise EvokdError(where, "a formula equal to the function", f"a difference of {gap:.2g}")
