import math
from collections import Counter
from itertools import product
from random import Random
from statistics import fmean

import numpy as np
import pytest
import torch

from evokd.errors import EvokdError
from evokd.evaluate.tabular import read_table
from evokd.genome.grammar import Grammar, Rule, subtree_heights
from evokd.genome.grow import grow_tree, random_chooser
from evokd.genome.individual import Individual, Outcome, Status
from evokd.losses.growth import loss_grammar
from evokd.search.reinforce import BLIND, Baseline, Reinforce, decisions_of, surrogate
from evokd.search.rewards import Reward, absolute, hard, soft
from evokd.space import read_space
from evokd.streams import stream
from evokd.students import read_student_space
from tests.bench.tabular import play
from tests.search.test_ageing import assert_only_history_counts, assert_resumes_from_any_line, describe
from tests.search.test_local import (
    assert_beats_random,
    assert_same_in_another_process,
    searched,
    slots_grammar,
    told,
    word,
)
from tests.toy import toy_grammar

POLICIES = ["factorised", "lstm"]


def small_grammar(height: int = 2) -> Grammar:
    """302 trees, with forced and masked choices: at the limit only the two leaves are left."""
    rules = [Rule(op, "number", ("number", "number")) for op in ("add", "mul")] + [Rule(leaf, "number") for leaf in "xy"]
    rules += [Rule("neg", "number", ("number",)), Rule("all", "root", ("number",))]
    return Grammar("small", rules, "root", height + 1, write=lambda tree: " ".join(node.name for node in tree))


def all_trees(grammar: Grammar, ret=None, height=None) -> list[list]:
    ret, height = ret or grammar.root, grammar.height if height is None else height
    found = []
    for node in grammar.options(ret, height):
        below = [all_trees(grammar, arg, height - 1) for arg in (node.args if node.arity else ())]
        found += [[node, *(n for part in parts for n in part)] for parts in product(*below)]
    return found


def controller(policy="factorised", grammar=None, spread=1.0, **options) -> Reinforce:
    """One with weights that are drawn, so that no choice is as likely as another."""
    made = Reinforce(grammar or small_grammar(), policy, **options)
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in made.policy.parameters():
            weight.copy_(spread * torch.randn(weight.shape, generator=draw, dtype=torch.float64))
    return made


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def logits_by_hand(made: Reinforce, tokens: list[tuple[int, int]]) -> np.ndarray:
    """Of the last of (context, production before) tokens, from the weights alone."""
    w = {name: value.detach().numpy() for name, value in made.policy.named_parameters()}
    if "logits" in w:
        return w["logits"][tokens[-1][0]]
    h = c = np.zeros(w["head.weight"].shape[1])
    for context, before in tokens:
        x = w["context.weight"][context] + w["before.weight"][before]
        i, f, g, o = np.split(
            w["lstm.weight_ih_l0"] @ x + w["lstm.bias_ih_l0"] + w["lstm.weight_hh_l0"] @ h + w["lstm.bias_hh_l0"], 4
        )
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    return w["head.weight"] @ h + w["head.bias"]


def by_hand(made: Reinforce, tree: list) -> tuple[list[float], list[float], list[np.ndarray]]:
    """(chances, entropies, distributions) of a tree's decisions by recursion: random search's times exp(logits), normalised."""
    grammar, vocabulary = made.grammar, made.vocabulary
    left, tokens, chances, entropies, rows = list(tree), [], [], [], []
    before = len(vocabulary.productions)

    def visit(ret, height, context):
        nonlocal before
        node, options = left.pop(0), grammar.options(ret, height)
        if len(options) > 1:
            leaves = sum(o.arity == 0 for o in options)
            mixed = 0 < leaves < len(options)
            tokens.append((vocabulary.contexts[context], before))
            logits, p = logits_by_hand(made, tokens), np.zeros(len(vocabulary.productions))
            for o in options:
                prior = 1 / (len(options) - leaves if o.arity else leaves) / (2 if mixed else 1)
                p[vocabulary.productions[o.name]] = prior * math.exp(logits[vocabulary.productions[o.name]])
            p /= p.sum()
            before = vocabulary.productions[node.name]
            chances.append(p[before])
            entropies.append(-sum(q * math.log(q) for q in p if q))
            rows.append(p)
        for slot, arg in enumerate(node.args if node.arity else ()):
            visit(arg, height - 1, (node.name, slot))

    visit(grammar.root, grammar.height, ("", 0))
    return chances, entropies, rows


def tell_all(made, judge, generations=8, size=4, seed=0):
    for generation in range(generations):
        batch = [made.ask(generation, stream(seed, generation, n)) for n in range(size)]
        for number, each in enumerate(batch):
            each.id = size * generation + number
            each.settle(judge(each))
        made.tell(batch)


# --- the policy --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_a_tree_is_as_likely_as_its_choices_together(policy):
    made = controller(policy)
    trees = Random(0).sample(all_trees(made.grammar), 25)
    logs, entropies = made.log_probs([made.walk(tree) for tree in trees])
    expected = [by_hand(made, tree) for tree in trees]
    assert logs.exp().tolist() == pytest.approx([c for chances, *_ in expected for c in chances], rel=1e-9)
    assert entropies.tolist() == pytest.approx([e for _, each, _ in expected for e in each], rel=1e-9)


@pytest.mark.parametrize("policy", POLICIES)
def test_all_trees_together_are_certain_and_drawn_as_often_as_they_are_likely(policy):
    made = controller(policy, spread=0.3)
    trees = all_trees(made.grammar)
    assert len(trees) == made.grammar.count() == 302
    chances = {made.grammar.write(t): made.log_probs([made.walk(t)])[0].sum().exp().item() for t in trees}
    assert sum(chances.values()) == pytest.approx(1, rel=1e-9)
    draw, count = Random(1), 2500
    drawn = Counter(made.grammar.write(made.draw(draw)) for _ in range(count))
    assert set(drawn) <= set(chances)
    for text, chance in sorted(chances.items(), key=lambda item: -item[1])[:12]:
        assert drawn[text] / count == pytest.approx(chance, abs=4 * math.sqrt(chance / count))


@pytest.mark.parametrize("policy", POLICIES)
def test_each_choice_inverts_its_distribution_at_one_number_of_the_stream(policy):
    made, longest = controller(policy, spread=0.3), 0
    for seed in range(150):
        tree, numbers = made.draw(Random(seed)), Random(seed)
        _, _, rows = by_hand(made, tree)
        for p, step in zip(rows, made.walk(tree), strict=True):
            at, number = made.vocabulary.productions[step.chosen.name], numbers.random()
            assert p[:at].sum() - 1e-9 <= number <= p[: at + 1].sum() + 1e-9
        longest = max(longest, len(rows))
    assert longest == 7


def test_it_starts_as_random_search():
    """By the rule of `random_chooser`: a coin between leaves and the rest, each uniform."""
    made = Reinforce(small_grammar())
    for names, chance in (("all x", 1 / 4), ("all add x y", 1 / 6 / 4**2), ("all add mul x y y", 1 / 6 / 6 / 2 / 2 / 4)):
        tree = [made.grammar.nodes[name] for name in names.split()]
        assert made.log_probs([made.walk(tree)])[0].sum().exp().item() == pytest.approx(chance)
    near = Reinforce(small_grammar(), "lstm")
    assert near.log_probs([near.walk(tree)])[0].sum().exp().item() == pytest.approx(chance, rel=0.5)


def test_only_what_can_be_completed_is_chosen():
    for policy, grammar in product(POLICIES, (toy_grammar(3), small_grammar(3), read_student_space("conv20").grammar)):
        made = controller(policy, grammar, spread=3.0)
        for number in range(5):
            tree = made.ask(0, stream(number))
            nodes, offered = iter(tree), []
            again = grow_tree(grammar, lambda options, nodes=nodes, offered=offered: (offered.append(options), next(nodes))[1])
            assert list(again) == list(tree)
            assert all(node in options for node, options in zip(tree, offered, strict=True))
            assert max(subtree_heights(tree)) <= grammar.height
            assert [step.options for step in decisions_of(tree, grammar)] == [o for o in offered if len(o) > 1]


def test_what_the_grammar_does_not_offer_is_no_decision():
    """Canonical losses and tuned numbers need not be derivable: the rest of the tree still teaches."""
    grammar = loss_grammar(read_space("compact").space, ["logits", "features[-1]"])
    made, draw, lost = Reinforce(grammar), stream(0), 0
    for number in range(20):
        grown = grow_tree(grammar, random_chooser(draw))
        assert len(made.walk(grown)) == len([s for s in decisions_of(grown, grammar)])
        tree = Individual(
            [Rule("17.3", n.ret.__name__).node() if n.ret.__name__ == "value" else n for n in grammar.canonical(grown)]
        )
        lost += sum(n.name == "17.3" for n in tree)
        assert all(step.chosen.name != "17.3" for step in made.walk(tree))
        tree.id = number
        tree.settle(Outcome(Status.OK, float(number)))
        made.tell([tree])
    assert lost > 3
    assert torch.isfinite(made.policy.logits).all()
    assert made.policy.logits.abs().max() > 0.1


# --- learning ----------------------------------------------------------------------------------------------------------------


def sgd(made: Reinforce, rate: float = 1.0) -> Reinforce:
    made.optimiser = torch.optim.SGD(made.policy.parameters(), rate)
    return made


def test_a_step_is_reinforce_by_the_formula():
    """Mean over trees of A·Σ(1[chosen] − p) and of the entropy's gradient, −p(log p + H) for each decision."""
    made = sgd(controller(entropy=0.3))
    trees = Random(1).sample(all_trees(made.grammar), 6)
    advantages = [1.5, -0.5, 0.0, 2.0, -1.0, 0.25]
    expected, before = torch.zeros_like(made.policy.logits), made.policy.logits.detach().clone()
    for tree, advantage in zip(trees, advantages, strict=True):
        for step, p, entropy in zip(made.walk(tree), *by_hand(made, tree)[:0:-1], strict=True):
            row, one = made.vocabulary.contexts[step.context], np.zeros_like(p)
            one[made.vocabulary.productions[step.chosen.name]] = 1
            bonus = np.array([-q * (math.log(q) + entropy) if q else 0 for q in p])
            expected[row] += torch.tensor((advantage * (one - p) + 0.3 * bonus) / len(trees))
    made.learn([made.walk(tree) for tree in trees], advantages)
    assert torch.allclose(made.policy.logits.detach() - before, expected, atol=1e-12)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_expected_step_climbs_the_expected_reward(policy):
    """Weighted by their chances, the steps of all trees are the gradient of E[R], by central differences on some weights."""
    made = sgd(controller(policy, small_grammar(1), spread=0.5, entropy=0.0))
    trees = all_trees(made.grammar)
    rewards = [float(len(tree)) + (tree[1].name == "mul") for tree in trees]

    def expectation() -> float:
        return sum(math.prod(by_hand(made, tree)[0]) * reward for tree, reward in zip(trees, rewards, strict=True))

    differences, weights = [], list(made.policy.parameters())
    places = [(w, i) for w in weights for i in range(0, w.numel(), 1 + w.numel() // 24)]
    for weight, at in places:
        flat, sides = weight.data.view(-1), []
        for side in (1e-5, -1e-5):
            flat[at] += side
            sides.append(expectation())
            flat[at] -= side
        differences.append((sides[0] - sides[1]) / 2e-5)
    before = [w.detach().clone() for w in weights]
    chances = [math.prod(by_hand(made, tree)[0]) for tree in trees]
    made.learn([made.walk(t) for t in trees], [len(trees) * c * r for c, r in zip(chances, rewards, strict=True)])
    moved = {id(w): (w.detach() - b).view(-1) for w, b in zip(weights, before, strict=True)}
    assert [moved[id(w)][at].item() for w, at in places] == pytest.approx(differences, abs=1e-8)
    assert max(map(abs, differences)) > 1e-2


def test_the_surrogate_by_hand():
    ratios, advantages = [1.0, 1.5, 0.5, 1.5, 0.5, 1.1], [2.0, 2.0, 2.0, -2.0, -2.0, -2.0]
    found = surrogate(torch.tensor(ratios).log(), torch.zeros(6), torch.tensor(advantages), 0.2)
    assert found.tolist() == pytest.approx([2.0, 2.4, 1.0, -3.0, -1.6, -2.2])


def test_ppo_stops_where_the_ratio_leaves_the_clip():
    """The second of two epochs adds nothing once every ratio is beyond ε; without a clip it does."""
    moved = {}
    for epochs, clip in ((1, 0.2), (2, 1e-9), (2, 10.0)):
        made = sgd(controller(entropy=0.0, epochs=epochs, clip=clip))
        tree = [made.grammar.nodes[name] for name in ("all", "add", "x", "y")]
        made.learn([made.walk(tree)], [1.0])
        moved[epochs, clip] = made.policy.logits.detach()
    assert torch.equal(moved[1, 0.2], moved[2, 1e-9])
    assert not torch.allclose(moved[1, 0.2], moved[2, 10.0], atol=1e-3)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_bonus_raises_the_entropy(policy):
    made = sgd(controller(policy, entropy=1.0), 0.05)
    walks = [made.walk(tree) for tree in all_trees(made.grammar)[::20]]
    before = made.log_probs(walks)[1].sum().item()
    for _ in range(5):
        made.learn(walks, [0.0] * len(walks))
    assert made.log_probs(walks)[1].sum().item() > before + 0.5


def test_the_baseline_by_hand():
    """Bias-corrected means: weights 0.9^age, made to add to 1."""
    baseline, rewards = Baseline(0.9), [5.0, 1.0, 3.0]
    squares = []
    for n, reward in enumerate(rewards, 1):
        ages = [0.9 ** (n - 1 - i) for i in range(n)]
        centred = reward - sum(a * r for a, r in zip(ages, rewards, strict=False)) / sum(ages)
        squares.append(centred**2)
        scale = math.sqrt(sum(a * s for a, s in zip(ages, squares, strict=False)) / sum(ages))
        assert baseline.advantages([reward]) == pytest.approx([centred / scale if scale else 0.0])
    assert Baseline(0.9).advantages([2.0, 4.0, 9.0]) == pytest.approx([x / math.sqrt(26 / 3) for x in (-3, -1, 4)])


def test_the_unit_of_the_fitness_does_not_matter():
    """Powers of two, so that not even rounding differs."""
    proposals = []
    for unit in (1.0, 2.0**20, 2.0**-20):
        made = Reinforce(toy_grammar())
        tell_all(made, lambda tree, unit=unit: Outcome(Status.OK, unit * len(tree)))
        proposals.append([describe(made.ask(9, stream(n))) for n in range(10)])
    assert proposals[0] == proposals[1] == proposals[2]


def test_failures_get_the_worst_reward_so_far():
    grammar = slots_grammar()
    made, before = Reinforce(grammar), Reinforce(grammar).policy.logits
    made.tell([told(grammar, "00000000", 0, None), told(grammar, "10000000", 1, None)])
    assert torch.equal(made.policy.logits, before)
    batch = [told(grammar, f"{n}0000000", n, f) for n, f in enumerate([5.0, None, 3.0])]
    assert made.rewards(batch) == [5, 3, 3]
    assert made.rewards([told(grammar, "30000000", 3, 4.0), told(grammar, "01000000", 4, None)]) == [4, 3]


@pytest.mark.parametrize("policy", POLICIES)
def test_failures_are_avoided_and_leave_no_nan(policy):
    """Words whose first digit is not 2 fail."""
    grammar = slots_grammar(3, 4)
    made = Reinforce(grammar, policy)
    tell_all(made, lambda t: Outcome(Status.OK, 1.0 + int(word(t)[1])) if word(t)[0] == "2" else Outcome(Status.DIVERGED), 40, 4)
    draw = stream(3)
    assert fmean(word(made.draw(draw))[0] == "2" for _ in range(200)) > 0.5
    assert all(torch.isfinite(weight).all() for weight in made.policy.parameters())


def test_only_failures_teach_nothing():
    made = Reinforce(toy_grammar())
    tell_all(made, lambda tree: Outcome(Status.CRASHED), 5)
    assert not made.policy.logits.any()


# --- rewards -----------------------------------------------------------------------------------------------------------------


def test_rewards_by_hand():
    assert soft(0.75, 1.0) == hard(0.75, 1.0) == absolute(0.75, 1.0) == 0.75
    assert soft(0.5, 2.0) == pytest.approx(0.5 * 0.952638)  # MnasNet: twice the latency for 5 % more accuracy
    assert soft(0.5, 0.5) == pytest.approx(0.5 * 1.049717)
    assert hard(0.8, 4.0) == pytest.approx(0.2)
    assert hard(0.8, 0.25) == 0.8
    assert absolute(0.8, 1.5) == absolute(0.8, 0.5) == pytest.approx(0.75)
    told = Outcome(Status.OK, 80.0, {"latency_ms": 3.0})
    assert Reward("abs", "latency_ms", 2.0, one=100.0)(told) == pytest.approx(75)
    assert Reward("soft", "latency_ms", 2.0, one=100.0)(told) == pytest.approx(Reward("soft", "latency_ms", 2.0)(told))


def test_a_reward_reads_the_outcome():
    outcome = Outcome(Status.OK, 0.8, {"latency_ms": 30.0, "macs": 1e6})
    assert Reward()(outcome) == 0.8
    assert Reward("hard", target=15.0)(outcome) == pytest.approx(0.4)
    assert Reward("abs", "macs", 2e6)(outcome) == pytest.approx(0.75)
    assert Reward("soft", "macs", 2e6)(outcome) == pytest.approx(0.8 * 2**0.07)
    for dead in (Outcome(Status.CRASHED), Outcome(Status.OK, 0.1), Outcome(Status.OK, 0.1, {"macs": math.inf})):
        assert Reward("soft", "macs", 1.0)(dead) is None
    assert Reward()(Outcome(Status.OK, 0.1)) == 0.1


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Reward("sotf", target=1.0), "reward: expected a reward, got 'sotf'; did you mean 'soft'?"),
        (lambda: Reward("soft"), "reward soft: expected a positive target for latency_ms, got None"),
        (lambda: Reward("abs", "macs", -1.0), "reward abs: expected a positive target for macs, got -1.0"),
        (lambda: Reinforce(toy_grammar(), "ltsm"), "policy: expected a policy, got 'ltsm'; did you mean 'lstm'?"),
        (lambda: Reinforce(toy_grammar(), epochs=0), "epochs: expected at least 1, got 0"),
    ],
)
def test_mistakes_are_told_in_one_line(make, line):
    with pytest.raises(EvokdError) as caught:
        make()
    assert str(caught.value) == line


def test_a_cost_that_nothing_has_is_a_mistake_but_a_dead_start_is_not():
    grammar = slots_grammar()
    made = Reinforce(grammar, reward=Reward("soft", target=1.0))
    made.tell([told(grammar, "00000000", n, 1.0) for n in range(BLIND - 1)])
    with pytest.raises(EvokdError, match=f"reward soft: expected the metric latency_ms, got none in {BLIND} outcomes"):
        made.tell([told(grammar, "10000000", 1, 1.0)])
    fine = Reinforce(grammar, reward=Reward("soft", "macs", 1.0))
    tell_all(fine, lambda t: Outcome(Status.OK, 1.0, {"macs": 1.0} if word(t)[0] != "0" else {}), 30)


def test_a_trade_changes_what_is_learnt():
    """Fitness wants high digits, the cost forbids a first digit above 1."""
    grammar, shares = slots_grammar(3, 4), []
    for reward in (Reward(), Reward("hard", "cost", 2.0)):
        made, draw = Reinforce(grammar, reward=reward), stream(1)
        tell_all(made, lambda t: Outcome(Status.OK, 10.0 + int(word(t)[0]), {"cost": 1.0 + int(word(t)[0])}), 60)
        shares.append(fmean(word(made.draw(draw))[0] in "23" for _ in range(200)))
    assert shares[0] > 0.8 > 0.2 > shares[1]


# --- in the loop -------------------------------------------------------------------------------------------------------------


def lstm(grammar):
    return Reinforce(grammar, "lstm", seed=3)


def ppo(grammar):
    return Reinforce(grammar, epochs=3)


@pytest.mark.parametrize("make", [Reinforce, ppo, lstm])
def test_a_cut_search_resumes(tmp_path, make):
    assert_resumes_from_any_line(tmp_path, make)


@pytest.mark.parametrize("make", [Reinforce, ppo, lstm])
def test_its_state_is_what_it_was_told(make):
    numbers = torch.get_rng_state()
    assert_only_history_counts(make)
    assert torch.equal(torch.get_rng_state(), numbers)


def test_another_process_proposes_the_same():
    made = [
        f"reinforce.{name}(toy_grammar(){options})" for name, options in (("Reinforce", ""), ("Reinforce", ", 'lstm', epochs=2"))
    ]
    assert_same_in_another_process("reinforce", made)


def test_the_seed_is_of_the_first_weights():
    first, same, other = (Reinforce(toy_grammar(), "lstm", seed=seed) for seed in (1, 1, 2))
    for a, b, c in zip(*(made.policy.parameters() for made in (first, same, other)), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
        assert a.abs().max() <= 0.1


def test_a_policy_that_has_settled_does_not_end_the_search():
    grammar = slots_grammar(4, 3)
    made = Reinforce(grammar)
    with torch.no_grad():
        made.policy.logits[:, [made.vocabulary.productions[f"s{i}=1"] for i in range(4)]] = 100.0
    asked = [made.ask(0, stream(0, n)) for n in range(5)]
    assert [each.op for each in asked] == ["policy", *["random"] * 4]
    assert word(asked[0]) == "1111"
    made.tell([])
    assert [made.ask(1, stream(1)).op, made.ask(1, stream(1)).op] == ["policy", "random"]
    assert len(searched(made, 40, 1, judge=lambda tree: Outcome(Status.OK, 1.0))) == 40


def test_a_grammar_that_has_shrunk_is_obeyed():
    """`shrink_every` takes operators away from a controller at work."""
    made = Reinforce(toy_grammar(), "lstm")
    tell_all(made, lambda tree: Outcome(Status.OK, float(len(tree))), 3)
    full = made.grammar
    made.grammar = Grammar("less", [rule for rule in full.rules if rule.name not in ("mul", "7")], "number", 4, write=full.write)
    before = Counter(node.name for tree in (made.draw(stream(n)) for n in range(40)) for node in tree)
    tell_all(made, lambda tree: Outcome(Status.OK, float(len(tree))), 3, seed=1)
    assert set(before) == {"add", "1", "2", "3", "5"}
    assert all(torch.isfinite(weight).all() for weight in made.policy.parameters())


def test_threads_are_given_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        tell_all(Reinforce(toy_grammar()), lambda tree: Outcome(Status.OK, float(len(tree))), 2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (Reinforce, 1),
        (lambda grammar: Reinforce(grammar, epochs=4), 10),
        (lambda grammar: Reinforce(grammar, "lstm", epochs=5), 10),
    ],
    ids=["reinforce", "ppo", "lstm ppo"],
)
def test_it_beats_random_search(make, size):
    assert_beats_random(make, size, seeds=10, by=0.5)


def test_nas_bench_201_as_published(shared_data):
    """Dong & Yang (ICLR 2020): REINFORCE 93.85 ± 0.37; ours at the better rate of 0.1, 93.92 with their code and that rate."""
    table, space = read_table("nas_bench_201", shared_data), read_student_space("nas_bench_201")
    runs = [play(table, space, Reinforce, 1, seed).best for seed in range(25)]
    assert fmean(table.accuracy(best, "cifar10") for best in runs) == pytest.approx(93.95, abs=0.15)
