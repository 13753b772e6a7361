"""Shrinkage of a space: ranks and p-values against scipy and permutations, planted journals, and the space file that comes out."""

import copy
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from evokd.genome.codec import to_names
from evokd.genome.grow import grow_tree, random_chooser
from evokd.losses.growth import LossSpace, loss_grammar
from evokd.losses.language import kind_of, parse_loss, to_terms
from evokd.shrink import KINDS, LEAST, LEVEL, SHARE, Evidence, refuted, shrink, weigh, write_shrunk
from evokd.space import SpaceFile, read_space
from evokd.streams import stream

SHOWN = ("logits", "embedding", "features[-1]", "features[-2]")
COMPACT = read_space("compact").space


@cache
def grown(name, count=160):
    """Trees of a space, each once, in canonical form."""
    grammar, draw = loss_grammar(read_space(name).space, SHOWN), stream(0, "grown", name)
    trees = {}
    while len(trees) < count:
        tree = grammar.canonical(grow_tree(grammar, random_chooser(draw)))
        trees[grammar.write(tree)] = tree
    return list(trees.values())


def event(tree, fitness=None, status="OK", reason="", generation=0, parents=(), number=0):
    """A candidate as the journal writes it; of a text, or of a tree."""
    names = to_names(parse_loss(tree) if isinstance(tree, str) else tree)
    about = {
        "event": "individual",
        "id": number,
        "generation": generation,
        "op": "random",
        "parents": list(parents),
        "tree": names,
    }
    return about | {"status": status, "fitness": fitness, "reason": reason, "metrics": {}, "seconds": 0.1}


def names_in(tree):
    """(kind, name) of what a loss is made of, read off its terms instead of its nodes."""
    found = set()
    for term in to_terms(tree):
        if not term.module:
            found.add(("distances", term.distance.name))
            if kind_of(term.distance) == "distance":  # a value per sample, which a mode may weigh
                found.add(("modes", term.mode.name))
            calls = [call for call in term.distance.walk() if call is not term.distance]
            found |= {("transforms", call.name) for call in calls if call.args}
            found |= {("positions", n) for call in calls if not call.args for n in (call.name, call.name.split("[")[0])}
    return found


def journal(merit, trees=None, fail=0.1):
    """One generation whose fitness `merit(names, draw)` gives; a share fails, whatever is in it."""
    draw = stream(0, "journal")
    found = []
    for number, tree in enumerate(trees or grown("compact")):
        bad = draw.random() < fail
        figures = {"status": "DIVERGED"} if bad else {"fitness": merit(names_in(tree), draw)}
        found.append(event(tree, number=number, **figures))
    return found


def of(evidence, kind, name):
    (found,) = [e for e in evidence if (e.kind, e.name) == (kind, name)]
    return found


def dropped(evidence):
    return {(e.kind, e.name) for e in evidence if e.dropped}


# --- reading a journal -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["compact", "extended", "kd_zero"])
def test_every_name_of_the_space_is_weighed_by_the_candidates_that_it_occurs_in(name):
    space, trees = read_space(name).space, grown(name)
    evidence = weigh([event(tree, fitness=1.0) for tree in trees], space)
    assert [(e.kind, e.name) for e in evidence] == [(kind, n) for kind in KINDS for n in getattr(space, kind)]
    counts = Counter(pair for tree in trees for pair in names_in(tree))
    assert {(e.kind, e.name): e.count for e in evidence} == {(e.kind, e.name): counts[e.kind, e.name] for e in evidence}
    assert {e.judged for e in evidence} == {len(trees)}
    assert sum(counts.values()) > 3 * len(trees)


def test_an_operator_on_one_side_a_position_with_an_index_and_a_schedule_are_read():
    space = replace(COMPACT, positions=("features[-1]", "features", "logits"))
    evidence = weigh([event("ramp(0, 1)*conf*l2(teacher.norm_C(norm_N(features[-1]))) + crd", fitness=1.0)], space)
    assert {e.name for e in evidence if e.count} == {"norm_C", "norm_N", "l2", "conf", "features[-1]", "features"}


def test_failures_are_worst_then_those_stopped_at_a_rung_then_the_finished_by_fitness():
    events = [
        event("l1(logits)", status="REJECTED", reason="probe: gradient is zero"),
        event("l1(logits)", status="CRASHED"),
        event("l2(logits)", status="REJECTED", reason="rung 1: 7 of 9"),
        event("l2(logits)", status="REJECTED", reason="rung 2: 3 of 4"),
        event("kl(logits, tau=1)", fitness=-1e9),
        event("cosine(logits)", fitness=3.0),
        event("pearson(logits)", fitness=4.0),
    ]
    evidence = weigh([{"event": "start"}, *events, {"event": "generation", "generation": 0}], COMPACT)
    ranks = {"l1": 0.5 / 6, "l2": 2.5 / 6, "kl": 4 / 6, "cosine": 5 / 6, "pearson": 1.0}
    assert {n: of(evidence, "distances", n).rank for n in ranks} == pytest.approx(ranks)
    assert {n: of(evidence, "distances", n).failures for n in ranks} == {"l1": 2, "l2": 0, "kl": 0, "cosine": 0, "pearson": 0}
    assert of(evidence, "positions", "logits").rank == pytest.approx(0.5)
    assert of(evidence, "positions", "logits").failures == 2


def test_a_rung_is_the_reason_of_a_refusal_alone():
    events = [event("l1(logits)", status="CRASHED", reason="rung 1"), event("l2(logits)", status="REJECTED", reason="rung 1")]
    evidence = weigh(events, COMPACT)
    assert (of(evidence, "distances", "l1").failures, of(evidence, "distances", "l2").failures) == (1, 0)


def test_what_never_occurs_or_stands_alone_in_its_generation_has_nothing_against_it():
    evidence = weigh([event("l1(logits)", fitness=1.0, generation=g) for g in range(9)], COMPACT)
    assert {(e.p, e.rank) for e in evidence} == {(1.0, 0.5)}
    assert weigh([], COMPACT)[0].judged == 0


def test_events_are_only_read_and_their_order_does_not_matter():
    events = journal(lambda names, draw: draw.random() - (("distances", "l2") in names))
    before = copy.deepcopy(events)
    there, back = weigh(iter(events), COMPACT), weigh(reversed(events), COMPACT)
    assert events == before
    assert [replace(e, rank=0, p=0) for e in there] == [replace(e, rank=0, p=0) for e in back]
    assert [e.p for e in there] == pytest.approx([e.p for e in back])


# --- the test ----------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(-1, 12)), min_size=4, max_size=60))
def test_in_one_generation_it_is_mann_and_whitneys(rows):
    """Against scipy; −1 is a failure, and fitness has ties."""
    events = [
        event("l1(logits)" if has else "l2(logits)", **({"status": "TIMED_OUT"} if value < 0 else {"fitness": float(value)}))
        for has, value in rows
    ]
    found = of(weigh(events, COMPACT), "distances", "l1")
    x, y = ([value for has, value in rows if has is side] for side in (True, False))
    if not x or not y or len({value for _, value in rows}) == 1:
        assert found.p == 1.0
        return
    wanted = mannwhitneyu(x, y, alternative="less", use_continuity=False, method="asymptotic")
    assert found.p == pytest.approx(wanted.pvalue, rel=1e-9)
    assert found.count == len(x)


@pytest.mark.parametrize("seed", range(3))
def test_over_generations_it_is_a_permutation_within_each_of_them(seed):
    """Against permuting fitness within generation and parentage; generations differ in level, size and share of the operator."""
    draw = np.random.Generator(np.random.PCG64(seed))
    sizes = {(0, False): 14, (1, True): 9, (1, False): 3, (2, True): 11}
    has = {k: draw.random(n) < 0.15 + 0.3 * k[0] for k, n in sizes.items()}
    value = {k: draw.normal(5 * k[0] + 9 * k[1], 1, n) - 0.6 * has[k] for k, n in sizes.items()}
    events = [
        event("l1(logits)" if h else "l2(logits)", fitness=float(v), generation=k[0], parents=(0,) if k[1] else ())
        for k in sizes
        for h, v in zip(has[k], value[k], strict=True)
    ]
    found = of(weigh(events, COMPACT), "distances", "l1")
    ranks = {k: value[k].argsort().argsort() / (n - 1) for k, n in sizes.items()}
    seen = sum(ranks[k][has[k]].sum() for k in sizes)
    drawn = sum(draw.permuted(np.tile(ranks[k], (20_000, 1)), axis=1)[:, has[k]].sum(1) for k in sizes)
    assert found.p == pytest.approx(np.mean(drawn <= seen + 1e-9), abs=0.02)
    assert found.rank == pytest.approx(seen / sum(h.sum() for h in has.values()))


def evidence_of(*ps, count=LEAST):
    return [Evidence("transforms", f"t{i}", count, 0, 0.1, p, False, 99) for i, p in enumerate(ps)]


@pytest.mark.parametrize(
    ("ps", "names"),
    [
        ([0.01, 0.04, 0.03, 0.005], ["t3", "t0"]),  # Benjamini and Hochberg would refute all four
        ([0.0125, 0.9, 0.9, 0.9], ["t0"]),
        ([0.0126, 0.0126, 0.0126, 0.0126], []),
        ([0.01, 0.016, 0.025, 0.05], ["t0", "t1", "t2", "t3"]),
        ([], []),
    ],
)
def test_holms_correction_steps_down(ps, names):
    assert [e.name for e in refuted(evidence_of(*ps))] == names


def test_what_occurs_too_rarely_is_neither_refuted_nor_counted():
    assert refuted(evidence_of(1e-9, count=LEAST - 1)) == []
    assert len(refuted([*evidence_of(LEVEL), *evidence_of(*[1e-9] * 50, count=LEAST - 1)])) == 1


# --- planted journals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "planted", [("distances", "l1"), ("transforms", "softmax_C"), ("modes", "entropy"), ("positions", "embedding")], ids=str
)
@pytest.mark.parametrize("how", ["low", "failed"])
def test_what_is_always_worst_is_dropped_and_nothing_else(planted, how):
    events = journal(lambda names, draw: draw.random())
    for e, tree in zip(events, grown("compact"), strict=True):
        if planted in names_in(tree):
            e |= {"status": "OK", "fitness": -9.0} if how == "low" else {"status": "CRASHED", "fitness": None}
    evidence = weigh(events, COMPACT)
    assert dropped(evidence) == {planted}
    space = shrink(COMPACT, evidence)
    assert getattr(space, planted[0]) == tuple(n for n in getattr(COMPACT, planted[0]) if n != planted[1])
    assert replace(space, **{planted[0]: getattr(COMPACT, planted[0])}) == COMPACT


@pytest.mark.parametrize(("count", "gone"), [(LEAST - 1, set()), (LEAST, {("distances", "smooth_l1")})])
def test_what_is_worst_but_rare_is_kept(count, gone):
    draw = stream(0, "rare")
    events = [event(f"{d}(logits)", fitness=draw.random()) for d in ("l1", "l2", "cosine", "pearson") for _ in range(25)]
    events += [event("smooth_l1(logits)", fitness=-1.0) for _ in range(count)]
    assert dropped(weigh(events, COMPACT)) == gone


def test_noise_drops_nothing_but_in_one_case_of_ten():
    """Family-wise: one false drop among all names of the space is a failure."""
    events = journal(lambda names, draw: draw.random(), grown("compact")[:100])
    assert sum(not dropped(weigh(permuted(events, seed), COMPACT)) for seed in range(30)) >= 27


def permuted(events, seed):
    """The same outcomes, dealt to other trees."""
    outcomes = [(e["status"], e["fitness"]) for e in events]
    stream(seed, "noise").shuffle(outcomes)
    return [e | {"status": status, "fitness": fitness} for e, (status, fitness) in zip(events, outcomes, strict=True)]


def test_what_bred_no_more_does_not_look_bad_for_that():
    """A neutral operator of the first generation, and of fresh trees later, beside children that are better for other reasons."""
    draw = stream(0, "descent")
    first = [event(f"{d}(logits)", fitness=draw.random()) for d in ("l1", "l2") * 10]
    later = [
        event("l2(logits)", fitness=10 * g + draw.random(), generation=g, parents=(1,)) for g in range(1, 9) for _ in range(9)
    ]
    fresh = [event(f"{d}(logits)", fitness=draw.random(), generation=g) for g in range(1, 9) for d in ("l1", "l2")]
    found = of(weigh([*first, *later, *fresh], COMPACT), "distances", "l1")
    assert not found.dropped
    assert found.p > 0.05


def test_a_bystander_of_what_is_bad_is_acquitted():
    draw = stream(0, "bystander")
    texts = ["l2(bmm(features[-1]))"] * 40 + ["l2(features[-1])"] * 20 + ["l2(logits)"] * 30 + ["l2(embedding)"] * 30
    events = [event(text, fitness=draw.random() - 2 * ("bmm" in text)) for text in texts]
    evidence = weigh(events, COMPACT)
    assert of(evidence, "positions", "features").p < 1e-6
    assert dropped(evidence) == {("transforms", "bmm")}


def test_a_bystander_that_never_stands_alone_is_acquitted_too():
    draw = stream(0, "together")
    events = [event("l2(bmm(features[-1]))", fitness=-1.0 - draw.random()) for _ in range(20)]
    events += [event(f"l2({p})", fitness=draw.random()) for p in ("logits", "embedding") * 20]
    assert len(dropped(weigh(events, COMPACT))) == 1


def test_a_bystander_among_equals_is_acquitted_whatever_the_rounding():
    """Apart from the bad operator all ranks are equal; with these numbers their mean is off by a bit."""
    events = [event("l2(bmm(features[-1]))", fitness=-1.0) for _ in range(20)]
    events += [event(f"l2({p})", fitness=1.0) for p in ["features[-1]"] * 10 + ["logits"] * 44]
    assert dropped(weigh(events, COMPACT)) == {("transforms", "bmm")}


# --- what stays can still be searched ----------------------------------------------------------------------------------------


def buildable(space, positions=SHOWN):
    return loss_grammar(space, positions).count() > 0


@pytest.mark.parametrize("figures", [{"status": "CRASHED"}, {"fitness": 0.0}, {"status": "REJECTED", "reason": "rung 1"}])
def test_where_all_are_alike_nothing_is_dropped(figures):
    evidence = weigh([event(tree, **figures) for tree in grown("compact")], COMPACT)
    assert dropped(evidence) == set()
    assert shrink(COMPACT, evidence) == COMPACT


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(["compact", "kd_zero", "tiny"]), st.randoms(use_true_random=False))
def test_at_most_a_third_of_a_list_goes_and_a_loss_can_be_built(name, draw):
    """With an effect of its own on every name, far above the noise."""
    space, trees = read_space(name).space, grown(name, 40 if name == "tiny" else 160)
    effect = {(kind, n): draw.choice([0, 0, -10, -100]) for kind in KINDS for n in getattr(space, kind)}
    events = [event(t, fitness=sum(effect.get(n, 0) for n in names_in(t)) + draw.random()) for t in trees]
    evidence = weigh(events, space)
    left = shrink(space, evidence)
    for kind in KINDS:
        assert len(getattr(space, kind)) - len(getattr(left, kind)) <= len(getattr(space, kind)) // SHARE
        assert getattr(left, kind)
    assert buildable(left)


def test_a_list_loses_a_third_at_most_the_worst_of_it():
    draw = stream(0, "third")
    bad = {"l1": 400, "l2": 300, "smooth_l1": 200, "kl": 0, "cosine": 0, "pearson": 0}
    names = {n: f"{n}(logits{', tau=1' if n == 'kl' else ''})" for n in bad}
    events = [event(names[n], fitness=draw.random() - bad[n]) for n in bad for _ in range(30)]
    assert [e.name for e in refuted(weigh(events, COMPACT))] == ["l1", "l2"]  # smooth_l1 is better than these
    assert dropped(weigh(events, COMPACT)) == {("distances", "l1"), ("distances", "l2")}
    smaller = replace(COMPACT, distances=("l1", "l2", "smooth_l1"))
    assert dropped(weigh(events, smaller)) == {("distances", "l1")}
    assert dropped(weigh(events, replace(COMPACT, distances=("l1", "l2")))) == set()


def test_the_last_position_that_the_pair_shows_stays():
    """Six positions would allow two to go, but this pair shows only these two; the good candidates read none."""
    positions = ("logits", "embedding", "tokens", "attention", "features", "pre_relu")
    space = replace(COMPACT, positions=positions, modules=("crd",), distances=("l2",), modes=("no",))
    draw = stream(0, "last")
    events = [event(f"l2({p})", fitness=draw.random() - 9) for p in ("logits", "embedding") for _ in range(30)]
    events += [event("crd", fitness=draw.random()) for _ in range(60)]
    evidence = weigh(events, space)
    assert {e.name for e in refuted(evidence)} == {"logits", "embedding", "l2", "no"}
    assert len(dropped(evidence)) == 1
    assert len({"logits", "embedding"} & {*shrink(space, evidence).positions}) == 1


def test_the_last_distance_that_a_formula_can_take_stays_though_a_module_could_be_grown():
    """The other two measure values that this pair does not show."""
    space = replace(COMPACT, transforms=(), distances=("l2", "partial_l2", "hinge"), positions=("logits",), modes=("no",))
    draw = stream(0, "module")
    events = [event("l2(logits)", fitness=draw.random() - 9) for _ in range(30)]
    events += [event("crd", fitness=draw.random()) for _ in range(60)]
    evidence = weigh(events, replace(space, modules=("crd",)))
    assert "l2" in {e.name for e in refuted(evidence)}
    assert dropped(evidence) == set()


# --- the space file ----------------------------------------------------------------------------------------------------------


def marked(space, *names):
    """Evidence as `weigh` gives it, with drops of our choice."""
    return [replace(e, dropped=e.name in names, judged=80, count=12, rank=0.21, p=0.003) for e in weigh([], space)]


@pytest.mark.parametrize("name", ["compact", "extended", "kd_zero", "logits", "tiny"])
@pytest.mark.parametrize("gone", [(), ("softmax_C", "kl")])
def test_what_is_written_reads_back_as_the_kept_names(name, gone, tmp_path):
    file = read_space(name)
    evidence = marked(file.space, *gone)
    (tmp_path / "shrunk.toml").write_text(write_shrunk(file, evidence, "run"), encoding="utf-8")
    read = read_space(str(tmp_path / "shrunk.toml")).space
    assert read == replace(shrink(file.space, evidence), name="shrunk")
    for kind in KINDS:
        assert getattr(read, kind) == tuple(n for n in getattr(file.space, kind) if n not in gone)


def test_optional_fields_and_odd_numbers_are_kept_exactly(tmp_path):
    space = replace(
        COMPACT, values=(1e-08, 1 / 3, 1e6), taus=(0.1,), modules=("crd",), schedules=("step",), one_sided=("norm_C", "relu")
    )
    text = write_shrunk(SpaceFile(space, ""), marked(space, "norm_C"), "run")
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    read = read_space(str(tmp_path / "mine.toml")).space
    kept = tuple(n for n in COMPACT.transforms if n != "norm_C")
    assert read == replace(space, name="mine", transforms=kept, one_sided=("relu",))
    assert "norm_C" not in text.partition("task =")[2]


def test_the_comments_name_the_run_and_say_why(tmp_path):
    file = read_space("compact")
    lines = write_shrunk(file, marked(file.space, "l1", "bmm"), "2026-run\n\x01= 3").splitlines()
    comments = [line for line in lines if line.startswith("#")]
    assert comments == [
        "# Shrunk by what run 2026-run??= 3 found: 80 candidates were read.",
        "# dropped bmm: 12 candidates, mean rank 0.21, p = 0.003",
        "# dropped l1: 12 candidates, mean rank 0.21, p = 0.003",
    ]
    (tmp_path / "a.toml").write_text("\n".join(lines))
    assert isinstance(read_space(str(tmp_path / "a.toml")).space, LossSpace)
