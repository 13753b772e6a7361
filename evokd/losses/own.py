"""A user's own operator: one decorated function in a file of theirs, checked at the door before it joins the language.

    from evokd.losses import transform

    @transform({"maps": "maps"}, lambda b, a: b.let(a.sizes, lambda *i: b.sp.atan(a[i])), keeps_shape=True)
    def arctan(f):
        return f.atan()

Files are run only where the command line or code names them (`--operators path.py:arctan`); a space file may use the bare name.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import importlib.util
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evokd.errors import EvokdError
from evokd.losses.language import ALL, learn_operator
from evokd.losses.operators import CLASSES, COLUMNS, KINDS, MAPS, RELATION, ROWS, TOKENS, Distance, Transform, source_of

# sizes of one value differ, so that a formula cannot mistake one for another
SHAPES = {MAPS: (4, 3, 8, 12), TOKENS: (4, 3, 5), ROWS: (4, 6), CLASSES: (4, 7), RELATION: (4, 4), COLUMNS: (6, 4)}
TAU = 3.0
# what an exported loss offers its operators, and what it uses for itself: an operator of such a name would hide it
IMPORTED = {"math", "torch", "F", "nn", "Tensor"}
TAKEN = {"s", "t", "self", "student", "teacher", "labels", "progress", "generator", "Connector", "EvolvedLoss", "bernoulli"}
NUMBERED = re.compile(r"v\d+_[st]|f_[st]\d+|(mask|term)\d+|z_[st]|schedule_\w+")
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
    except (Exception, SystemExit) as error:  # a user's file may raise anything
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
    _check_name(operator, where)
    _check_form(operator, where)
    for kinds in operator.kinds:
        (_check_transform if isinstance(operator, Transform) else _check_distance)(operator, kinds, where)


def _check_name(operator: Transform | Distance, where: str) -> None:
    """A name that the language can read, and a function that can stand in an exported file."""
    name = operator.name
    if name in ALL:
        raise EvokdError(where, "a name that no operator has", name)
    taken = name in TAKEN | IMPORTED | {*dir(builtins)} or NUMBERED.fullmatch(name)
    if taken or not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise EvokdError(where, "a named function, of a name that exported files have no use for", name)
    try:
        nodes = [*ast.walk(ast.parse(source_of(operator.fn)))]
    except (OSError, TypeError, ValueError, SyntaxError) as error:
        raise EvokdError(where, "a function whose source can be read", f"{type(error).__name__}: {error}"[:120]) from None
    names = [node for node in nodes if isinstance(node, ast.Name)]
    own = {n.id for n in names if isinstance(n.ctx, ast.Store)} | {n.arg for n in nodes if isinstance(n, ast.arg)}
    if foreign := sorted({n.id for n in names} - own - IMPORTED - {*dir(builtins)}):
        raise EvokdError(
            where, f"a function that uses {', '.join(sorted(IMPORTED))} alone, to be exported", ", ".join(foreign)[:80]
        )


def _check_form(operator: Transform | Distance, where: str) -> None:
    """Kinds, parameters and mask as `Transform` and `Distance` describe them."""
    transform = isinstance(operator, Transform)
    kinds = operator.kinds
    if not kinds or not isinstance(kinds, dict if transform else tuple):
        raise EvokdError(where, '{"maps": "maps"}' if transform else '("maps",)', repr(kinds)[:60])
    named = [name for key in kinds for name in (str(key).split(",") if transform else [key])]
    for name in [*named, *(kinds.values() if transform else ())]:
        if name not in KINDS:
            raise EvokdError(where, f"kinds among {', '.join(KINDS)}", repr(name)[:60])
    if operator.params not in ((), ("tau",)):
        raise EvokdError(where, "params () or ('tau',)", repr(operator.params)[:60])
    mask = operator.mask if transform else None
    if mask and not (isinstance(mask, tuple) and [*map(type, mask)] == [float, tuple] and 0 < mask[0] <= 1 and 0 in mask[1]):
        raise EvokdError(where, "mask=(share to keep, axes that the mask has, 0 among them)", repr(mask)[:60])


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
    made = out.detach().numpy()
    if operator.per_sample:
        made = made.reshape(len(made), -1).mean(1)
    told = _tabulated(operator, [x.detach().numpy() for x in pair], [], where)
    if told.ndim > 1:
        raise EvokdError(where, "a formula over axis 0 alone, the mean of the others", f"{told.ndim} axes")
    _check_formula(made if operator.per_sample else made.mean(), told if operator.per_sample else told.mean(), where)


def _extra(operator: Transform, shape: tuple[int, ...]) -> list[Tensor]:
    if operator.labels:
        return [torch.tensor([0, 2, -1, 1])]
    if operator.mask:
        sizes = [size if axis in operator.mask[1] else 1 for axis, size in enumerate(shape)]
        return [1 - torch.arange(math.prod(sizes), dtype=torch.float64).view(sizes) % 2]
    return []


def _called(call: Callable[[], Tensor], where: str) -> Tensor:
    try:
        first, second = call(), call()
    except Exception as error:  # a user's operator may raise anything
        raise EvokdError(where, "a function that runs", f"{type(error).__name__}: {error}"[:120]) from None
    if not isinstance(first, Tensor):
        raise EvokdError(where, "a tensor", type(first).__name__)
    if not torch.equal(first.nan_to_num(), second.nan_to_num()):
        raise EvokdError(where, "the same value for the same input", "another one", "draw masks with mask=(keep, axes)")
    return first


def _check_numbers(out: Tensor, inputs: list[Tensor], where: str) -> None:
    if not torch.isfinite(out).all():
        raise EvokdError(where, "finite values", "nan or infinity")
    if not out.requires_grad:
        raise EvokdError(where, "a gradient", "none")
    # a sum may be constant (softmax), so entries are weighed
    weighed = (out * torch.arange(1, out.numel() + 1).view(out.shape)).sum()
    try:
        gradients = torch.autograd.grad(weighed, inputs, allow_unused=True)
    except RuntimeError as error:
        raise EvokdError(where, "a function with a gradient", str(error)[:120]) from None
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
