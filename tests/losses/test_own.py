"""Users' operators: what is let in, what is refused at the door, and that those let in are operators like any other."""

from textwrap import dedent

import pytest
import torch

from evokd.errors import EvokdError
from evokd.genome.codec import to_names
from evokd.genome.grow import grow_tree, random_chooser
from evokd.losses import language, own
from evokd.losses.canonical import canonical
from evokd.losses.distances import DISTANCES
from evokd.losses.formula import to_latex, to_sympy
from evokd.losses.growth import loss_grammar
from evokd.losses.language import parse_loss, to_terms, tree_from_names, write_loss
from evokd.losses.own import load_operators
from evokd.losses.source import to_torch_source
from evokd.losses.transforms import TRANSFORMS
from evokd.space import read_space
from evokd.streams import stream
from tests.losses.forms import PAIRS, UNLIKE, S, T, call, evaluate, exported, run

HEAD = """
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from evokd.losses import distance, transform

"""

GOOD = {
    "arctan": """
        def formula(b, a):
            return b.let(a.sizes, lambda *i: b.sp.atan(a[i]))

        @transform({"maps": "maps", "rows": "rows", "classes": "classes"}, formula, keeps_shape=True)
        def arctan(f: Tensor) -> Tensor:
            \"\"\"Arc tangent.\"\"\"
            return f.atan()
    """,
    "soft": """
        def formula(b, a, tau):
            return b.let(a.sizes, lambda *i: tau * b.sp.log(1 + b.sp.exp(a[i] / tau)))

        @transform({"classes": "classes"}, formula, "τ ln(1 + e^(f/τ))", params=("tau",), keeps_shape=True)
        def soft(f, tau):
            return F.softplus(f / tau) * tau
    """,
    "blend": """
        def mean(b, a, i):
            return b.mean_axes(a, (i, 0, 0, 0), (1, 2, 3), lambda y: y)

        def formula(b, f, g):
            return b.let((f.sizes[0], b.sp.Integer(1)), lambda i, j: (mean(b, f, i) + mean(b, g, i)) / 2)

        @transform({"maps,maps": "rows"}, formula)
        def blend(f, g):
            return (f.flatten(1).mean(1, keepdim=True) + g.flatten(1).mean(1, keepdim=True)) / 2
    """,
    "spots": """
        def formula(b, a, m):
            return b.let(a.sizes, lambda i, j, p, q: a[i, j, p, q] * m[i, p, q])

        @transform({"maps": "maps"}, formula, mask=(0.5, (0, 2, 3)), keeps_shape=True)
        def spots(f, mask):
            return f * mask
    """,
    "truth": """
        def formula(b, a, y):
            return b.let(a.sizes, lambda i, j: b.if_(b.sp.Eq(y[i], j), 2, 1) * a[i, j])

        @transform({"classes": "classes"}, formula, labels=True, keeps_shape=True)
        def truth(f, labels):
            true = torch.arange(f.shape[1], device=f.device) == labels[:, None]
            return f * (1 + true.to(f.dtype))
    """,
    "charbonnier": """
        def formula(b, s, t):
            axes = range(1, len(s.sizes))
            smooth = lambda x, y: b.sp.sqrt((x - y) ** 2 + b.number(1e-3))
            return b.let(s.sizes[:1], lambda i: b.sum_axes2(s, t, (i, *[0] * len(axes)), axes, smooth) / b.size(s, axes))

        @distance(("maps", "tokens", "rows", "classes", "relation", "columns"), formula)
        def charbonnier(s, t):
            return ((s - t).square() + 1e-3).sqrt()
    """,
    "spread": """
        def formula(b, s, t, tau):
            return b.let((), lambda: b.sum_axes2(s, t, (0, 0), (0, 1), lambda x, y: (x - y) ** 4) / tau)

        @distance(("rows", "classes"), formula, params=("tau",), per_sample=False)
        def spread(s, t, tau):
            return (s - t).pow(4).sum() / tau
    """,
}
USES = {
    "arctan": "l2(arctan(features[-1])) + 2*kl(teacher.arctan(logits), tau=4)",
    "soft": "kl(soft(logits, tau=2), tau=4) + l2(student.soft(logits, tau=ramp(2, 1)))",
    "blend": "l1(blend(features[-1], relu(features[-2])))",
    "spots": "l2(spots(features[-1])) + l2(mm(spots(features[-1])))",
    "truth": "l2(truth(logits))",
    "charbonnier": "focal*charbonnier(features[-1]) + charbonnier(mm(tokens)) + charbonnier(transpose(embedding))",
    "spread": "spread(embedding, tau=3) + spread(logits, tau=anneal(4, 1))",
}


@pytest.fixture(autouse=True)
def tables():
    """The language as it was before the test."""
    kept = [dict(table) for table in (TRANSFORMS, DISTANCES)]
    names = set(language.ALL)
    yield
    for table, before in zip((TRANSFORMS, DISTANCES), kept, strict=True):
        table.clear()
        table.update(before)
    language.ALL.intersection_update(names)
    own._LOADED.clear()
    language.rules.cache_clear()
    language.node_named.cache_clear()


@pytest.fixture
def write(tmp_path):
    """A file of operators → its path."""

    def written(text, name="mine.py"):
        (tmp_path / name).write_text(HEAD + dedent(text), encoding="utf-8")
        return tmp_path / name

    return written


@pytest.fixture
def load(write):
    """Load a function from a file of the given text."""

    def loaded(text, name):
        return load_operators([f"{write(text)}:{name}"])

    return loaded


good = pytest.mark.parametrize("name", GOOD)


# --- what is let in ----------------------------------------------------------------------------------------------------------


@good
def test_a_loss_may_name_it_and_is_read_back(name, load):
    load(GOOD[name], name)
    tree = parse_loss(USES[name])
    assert write_loss(tree) == USES[name]
    assert list(tree_from_names(to_names(tree))) == list(tree)
    assert list(canonical(canonical(tree))) == list(canonical(tree))


@good
@pytest.mark.parametrize("pair", PAIRS)
def test_all_forms_of_the_loss_agree(name, pair, load):
    load(GOOD[name], name)
    tree, (s, t) = parse_loss(USES[name]), PAIRS[pair]
    ran = run(tree, s, t)
    assert evaluate(to_sympy(tree, s, t), s, t, ran) == pytest.approx(ran.value.item(), rel=1e-5)
    assert call(exported(tree, s, t, ran), s, t).item() == pytest.approx(ran.value.item(), rel=1e-9)
    assert to_latex(tree).startswith(r"\begin{aligned}")


def test_the_example_of_the_documentation_is_let_in(load):
    example = own.__doc__.partition("\n\n")[2].rpartition("\n\n")[0]
    load(dedent(example.replace("    from evokd.losses import transform\n", "")), "arctan")
    assert parse_loss("l2(teacher.arctan(features[-1]))")


def test_a_space_may_name_it(load, tmp_path):
    text = (read_space("compact").text).replace('"temper",', '"temper", "arctan",').replace('"l1",', '"l1", "charbonnier",')
    (tmp_path / "mine.toml").write_text(text + 'one_sided = ["arctan"]\n')
    with pytest.raises(EvokdError, match="'arctan'"):
        read_space(str(tmp_path / "mine.toml"))
    load(GOOD["arctan"] + GOOD["charbonnier"], "arctan")
    load_operators([f"{tmp_path / 'mine.py'}:charbonnier"])
    space = read_space(str(tmp_path / "mine.toml")).space
    grammar = loss_grammar(space, ["logits", "embedding", "features[-1]"])
    trees = [grow_tree(grammar, random_chooser(stream(seed, "own"))) for seed in range(80)]
    used = {(c.side, c.name) for tree in trees for term in to_terms(tree) for c in term.distance.walk()}
    assert used >= {("", "arctan"), ("teacher", "arctan"), ("student", "arctan"), ("", "charbonnier")}
    assert all(run(tree, S, UNLIKE).value.isfinite() for tree in trees)


def test_only_the_function_that_is_named_is_loaded(load):
    load(GOOD["arctan"] + GOOD["soft"], "soft")
    assert "soft" in TRANSFORMS
    assert "arctan" not in TRANSFORMS


def test_its_note_is_told_in_listings(load):
    load(GOOD["arctan"] + GOOD["soft"], "arctan")
    assert TRANSFORMS["arctan"].note == "Arc tangent."


def test_loading_twice_is_loading_once(write, tmp_path):
    first = load_operators([f"{write(GOOD['arctan'])}:arctan"])
    assert load_operators([f"{tmp_path / 'mine.py'}:arctan"]) == first
    assert first != ""
    assert load_operators([]) == ""


def test_the_hash_is_that_of_the_text(write, tmp_path):
    one = load_operators([f"{write(GOOD['arctan'])}:arctan"])
    two = load_operators([f"{write(GOOD['soft'], 'other.py')}:soft"])
    both = load_operators([f"{tmp_path / 'mine.py'}:arctan", f"{tmp_path / 'other.py'}:soft"])
    assert len({one, two, both}) == 3


def test_the_exported_file_holds_it(load):
    load(GOOD["charbonnier"], "charbonnier")
    source = to_torch_source(parse_loss(USES["charbonnier"]))
    assert source.count("def charbonnier(s, t):") == 1
    assert "@distance" not in source


# --- what is refused ---------------------------------------------------------------------------------------------------------


def one(
    body,
    formula="b.let(a.sizes, lambda *i: a[i])",
    kinds='{"maps": "maps"}',
    given="f",
    takes="b, a",
    name="f1",
    more="",
    before="",
):
    """A file with one transform, by default the identity on maps."""
    return f"{before}\n@transform({kinds}, lambda {takes}: {formula}{more})\ndef {name}({given}):\n    {body}\n\nf1 = {name}\n"


SQUARES = "b.let(s.sizes[:1], lambda i: b.sum_axes2(s, t, (i, 0), (1,), lambda x, y: (x - y) ** 2) / s.sizes[1])"


def gap(body="return (s - t).square()", formula=SQUARES, kinds='("rows",)', name="f1"):
    """A file with one distance, by default L2 on rows."""
    return f"@distance({kinds}, lambda b, s, t: {formula})\ndef {name}(s, t):\n    {body}\n\nf1 = {name}\n"


SAME, MASKED = "return f", {"given": "f, mask", "takes": "b, a, m"}
REFUSED = {
    "no such function": ("def other(f):\n    return f", "a transform or a distance, got NoneType"),
    "undecorated": ("def f1(f):\n    return f", "got function; decorate"),
    "no operator": ("f1 = 3", "got int"),
    "file that raises": ("raise ValueError('no')", "a file that runs, got ValueError: no"),
    "file that leaves": ("raise SystemExit(0)", "a file that runs, got SystemExit"),
    "file that is no Python": ("def f1(:", "a file that runs, got SyntaxError"),
    "file that lacks a module": ("import nonexistent_module", "a file that runs, got ModuleNotFoundError"),
    "name of a transform": (one(SAME, name="relu"), "a name that no operator has, got relu"),
    "name of a distance": (gap(name="kl"), "a name that no operator has, got kl"),
    "name of a mode": (one(SAME, name="focal"), "a name that no operator has, got focal"),
    "name of a module": (one(SAME, name="crd"), "a name that no operator has, got crd"),
    "name of a schedule": (one(SAME, name="ramp"), "a name that no operator has, got ramp"),
    "name of a position": (one(SAME, name="logits"), "a name that no operator has, got logits"),
    "no name": ('f1 = transform({"maps": "maps"}, lambda b, a: a)(lambda f: f)', "a named function"),
    "foreign letters": (one(SAME, name="größe"), "a named function"),
    "name in exported files": (one(SAME, name="s"), "that exported files have no use for, got s"),
    "name of an import": (one(SAME, name="torch"), "that exported files have no use for, got torch"),
    "name of a value": (one(SAME, name="v1_s"), "that exported files have no use for, got v1_s"),
    "name of Python's own": (one(SAME, name="len"), "that exported files have no use for, got len"),
    "help from elsewhere": (one("return half(f)", before="def half(f):\n    return f / 2\n"), "to be exported, got half"),
    "constant from elsewhere": (one("return f * SIZE", before="SIZE = 3"), "to be exported, got SIZE"),
    "another library": (one("return f * np.pi", before="import numpy as np"), "to be exported, got np"),
    "another library inside": (one("import numpy as np; return f * np.pi"), "to be exported, got np"),
    "unknown kind": (one(SAME, kinds='{"images": "maps"}'), "kinds among maps, tokens"),
    "unknown result": (one(SAME, kinds='{"maps": "images"}'), "kinds among maps, tokens"),
    "kinds as text": (one(SAME, kinds='"maps"'), '{"maps": "maps"}'),
    "no kinds": (one(SAME, kinds="{}"), '{"maps": "maps"}'),
    "kinds as numbers": (one(SAME, kinds="{1: 2}"), "kinds among maps, tokens"),
    "kind without a comma": (gap(kinds='("rows")'), '("maps",)'),
    "distance of two": (gap(kinds='("rows,rows",)'), "kinds among maps, tokens"),
    "other parameters": (one(SAME, more=", params=('alpha',)"), "params () or ('tau',)"),
    "broken mask": (one(SAME, more=", mask=0.5", **MASKED), "mask=(share to keep, axes"),
    "mask of nothing": (one(SAME, more=", mask=(0.0, (0, 1))", **MASKED), "mask=(share to keep, axes"),
    "mask of one for all": (one(SAME, more=", mask=(0.5, (1,))", **MASKED), "mask=(share to keep, axes"),
    "too few arguments": (one("return 1", given=""), "a function that runs, got TypeError"),
    "raising": (one("raise KeyError('x')"), "a function that runs, got KeyError"),
    "not torch": (one("return f.atan3()"), "a function that runs, got AttributeError"),
    "number": (one("return 1.0"), "a tensor, got float"),
    "wrong number of axes": (one("return f.flatten(1)"), "maps (4, 3, 8, 12)-like from maps, got (4, 288)"),
    "batch lost": (one("return f[:2]"), "-like from maps, got (2, "),
    "shape not kept": (one("return f[:, :1]", more=", keeps_shape=True"), "the shape kept"),
    "nan": (one("return f.log()"), "finite values, got nan or infinity"),
    "infinity": (one("return 1 / (f - f)"), "finite values"),
    "constant": (one("return torch.ones_like(f)"), "a gradient, got none"),
    "detached": (one("return f.detach()"), "a gradient, got none"),
    "zero gradient": (one("return f.sign()"), "a finite gradient that is not 0"),
    "nan gradient": (one("return (f - f).sqrt() + f"), "a finite gradient that is not 0"),
    "broken gradient": (one("y = f.exp(); y += 1; return y"), "a function with a gradient"),
    "random": (one("return f * torch.rand(1)"), "draw masks with mask=(keep, axes)"),
    "formula of another value": (one("return 2 * f"), "a formula equal to the function, got a difference of"),
    "formula of another size": (
        one(
            "return f.mean((2, 3))",
            "b.let(a.sizes[:2], lambda i, j: b.sum_axes(a, (i, j, 0, 0), (2, 3), lambda y: y) / a.sizes[2] ** 2)",
            '{"maps": "rows"}',
        ),
        "a formula equal to the function",
    ),
    "formula of another shape": (
        one("return f.mean((2, 3))", "b.let(a.sizes[:1], lambda i: a[i, 0, 0, 0])", '{"maps": "rows"}'),
        "a formula equal to the function, got a difference of inf",
    ),
    "formula without the mask": (
        one("return f * mask", more=", mask=(0.5, (0, 1))", **MASKED),
        "a formula equal to the function",
    ),
    "formula that raises": (one(SAME, "a.nothing"), "a formula that can be evaluated, got AttributeError"),
    "formula of too few arguments": (one(SAME, takes="b"), "a formula that can be evaluated, got TypeError"),
    "formula that is none": (one(SAME, "3"), "a formula that can be evaluated, got AttributeError"),
    "formula beyond the evaluator": (one(SAME, "b.let(a.sizes, lambda *i: b.sp.gamma(a[i]))"), "a formula that can be evaluated"),
    "distance that raises": (gap("return s @ t"), "a function that runs, got RuntimeError"),
    "distance without samples": (gap("return (s - t).square().mean()"), "values along axis 0, or per_sample=False"),
    "distance of nan": (gap("return (s - t).log()"), "finite values"),
    "distance without a gradient": (gap("return (s.detach() - t).square()"), "a finite gradient that is not 0"),
    "distance of another value": (gap("return (s - t).abs()"), "a formula equal to the function"),
    "distance that mixes samples": (gap("return (s - t).square().flip(0)"), "a formula equal to the function"),
    "distance of two axes": (
        gap(formula="b.let(s.sizes, lambda *i: (s[i] - t[i]) ** 2)"),
        "a formula over axis 0 alone, the mean of the others, got 2 axes",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_breaks_a_promise_is_refused_and_leaves_no_trace(case, load):
    text, told = REFUSED[case]
    before = dict(TRANSFORMS), dict(DISTANCES), set(language.ALL)
    with pytest.raises(EvokdError) as caught:
        load(text, "f1")
    assert told in str(caught.value)
    assert caught.value.where.startswith("--operators")
    assert "\n" not in str(caught.value)
    assert before == (TRANSFORMS, DISTANCES, language.ALL)
    assert not own._LOADED


@pytest.mark.parametrize(
    "spec", ["", "mine.py", "mine:f1", "nowhere.py:f1", "mine.txt:f1", ":f1", "/:f1", "mine.py:", "os:system"]
)
def test_what_names_no_function_of_a_file_is_refused(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def f1(f):\n    return f\n")
    with pytest.raises(EvokdError, match="--operators"):
        load_operators([spec])


def test_a_name_is_taken_by_whom_comes_first(write):
    load_operators([f"{write(GOOD['arctan'])}:arctan"])
    with pytest.raises(EvokdError, match="a name that no operator has, got arctan"):
        load_operators([f"{write(GOOD['arctan'], 'other.py')}:arctan"])


def test_texts_spaces_and_trees_never_load_a_file(write, tmp_path):
    path = write("raise SystemExit('was run')")
    for text in (f"l2({path}:f1(logits))", f"{path}:f1(logits)", "l2(mine.f1(logits))"):
        with pytest.raises(EvokdError):
            parse_loss(text)
    with pytest.raises(EvokdError):
        tree_from_names(["loss1", "term", "1", "no", f"{path}:f1", "logits"])
    (tmp_path / "mine.toml").write_text(read_space("compact").text.replace('"temper",', f'"{path}:f1",'))
    with pytest.raises(EvokdError):
        read_space(str(tmp_path / "mine.toml"))


def test_checking_draws_from_no_global_generator(load):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    load(GOOD["spots"], "spots")
    assert torch.equal(torch.get_rng_state(), before)
    assert run(parse_loss("l2(spots(features[-1]))"), S, T).masks
