"""What the funnel saves, what it costs, and what it wrongly refuses.

evaluations: evaluations for each distinct sound loss, evokd's loop beside a stock DEAP loop (eaSimple, cxOnePoint, mutUniform). Fitness is
             a made-up number of the canonical text, as only counts matter.
cost:        CPU seconds of every gate, against one distillation of the same loss.
rejected:    losses that a gate refuses, trained all the same: how many end in the upper half; published losses that are refused.

python -m tests.bench.funnel [digits [evaluations | cost | rejected] … | CIFAR-100 folder, TEACHER.safetensors, STUDENT [STEPS]]
"""

from __future__ import annotations

import csv
import operator
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path

from deap import algorithms, base, gp, tools

from evokd.config import make_config
from evokd.errors import EvokdError
from evokd.evaluate.distill import Job
from evokd.evaluate.fingerprint import SAME, cosine
from evokd.funnel import Funnel
from evokd.genome.codec import to_names
from evokd.genome.grammar import Grammar
from evokd.genome.grow import grow_tree, random_chooser
from evokd.genome.individual import Fitness, Individual, Outcome, Status
from evokd.journal import Journal
from evokd.losses import KNOWN, parse_loss
from evokd.losses.growth import loss_grammar
from evokd.losses.program import compile_loss
from evokd.problem import Problem, open_problem
from evokd.run import Budget, Search, evaluation_seeds
from evokd.search.evolution import Evolution
from evokd.space import read_space
from evokd.streams import derive, lend, stream

GENERATIONS, SIZE, SEEDS = 30, 12, 5  # of both loops
CROSSED, MUTATED = 0.5, 0.3  # cxpb and mutpb of eaSimple; its tournaments are of 3, as evokd's
TREES, TRAINED = 60, {"digits": 30}  # of `cost`: drawn, and of those trained; elsewhere 3
EACH, DRAWS = 60, 3000  # of `rejected`: refused and passed, and the most trees that are drawn


def main(data: str = "digits", *rest: str) -> None:
    with tempfile.TemporaryDirectory() as out:
        problem = opened(out, data, *(() if data == "digits" else rest))
        wanted = (rest or tuple(PARTS)) if data == "digits" else ("cost",)
        for part in wanted:
            PARTS[part](problem)
        problem.executor.close()


def opened(out: str, data: str, teacher: str = "", student: str = "", steps: str = "") -> Problem:
    settings = {"data": data, "out": out, "workers": 1, "tracking_uri": "none", "teacher_epochs": 5, "device": "cpu"}
    settings |= {"teacher": teacher, "student": student} if teacher else {}
    protocol = (["protocol.transfer=2000"] if teacher else []) + ([f"protocol.steps={steps}"] if steps else [])
    return open_problem(make_config(settings, protocol), lambda line: None)


def write_rows(title: str, rows: Sequence[Sequence]) -> None:
    path = Path("runs") / f"bench-funnel-{title}.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def grown(grammar: Grammar, *names: object) -> Iterator[list]:
    """Random canonical trees of a space, each once."""
    draw, seen = stream(0, "bench", *names), set()
    while True:
        tree = grammar.canonical(grow_tree(grammar, random_chooser(draw)))
        if (text := grammar.write(tree)) not in seen:
            seen.add(text)
            yield tree


# --- cost --------------------------------------------------------------------------------------------------------------------


def cost(problem: Problem) -> None:
    """Every gate runs until one refuses, as in a search; what has passed is trained. One thread, process time."""
    title = Path(problem.config.data).name
    funnel, count = problem.funnel(), TRAINED.get(title, 3)
    looked = [(tree, *gated(funnel, tree)) for tree in islice(grown(problem.grammar, "cost"), TREES)]
    passed = [(tree, spent) for tree, spent, reason in looked if not reason]
    seeds = evaluation_seeds(0, "search", problem.config.protocol.repeats)
    training = [trained_seconds(problem, tree, seeds) for tree, _ in passed[:count]]
    rows = [[round(spent.get(name, 0.0), 5) for name in funnel.gates] for _, spent, _ in looked]
    write_rows(f"cost-{title}", [list(funnel.gates), *rows, [], ["distillation"], *([round(each, 4)] for each in training)])
    print(f"cost, {title}: {TREES} random trees, {len(passed)} pass; {len(training)} distillations", flush=True)
    tell_cost([spent for _, spent in passed], training)
    total = sum(sum(spent.values()) for _, spent, _ in looked)
    share = total / (statistics.fmean(training) * len(passed))
    print(f"  all gates on all {TREES}, over a distillation of each that passes: {100 * share:.2f} %")


def gated(funnel: Funnel, tree: list) -> tuple[dict[str, float], str]:
    """(CPU seconds of each gate that was asked, the reason to refuse)."""
    spent: dict[str, float] = {}
    for name, gate in funnel.gates.items():
        start = time.process_time()
        reason = gate(tree)
        spent[name] = time.process_time() - start
        if reason:
            return spent, reason
    funnel.admitted(tree)
    return spent, ""


def trained_seconds(problem: Problem, tree: list, seeds: tuple[int, ...]) -> float:
    start = time.process_time()
    next(iter(problem.executor.map([problem.job(tree, seeds)])))
    return time.process_time() - start


def tell_cost(passed: Sequence[dict[str, float]], training: Sequence[float]) -> None:
    """Seconds of the gates that each tree has passed, as shares of the mean distillation: not all need be trained for that."""
    mean = statistics.fmean(training)
    print(f"  one distillation {mean:.3f} s of CPU  [{min(training):.3f}, {max(training):.3f}]")
    columns = {name: [spent[name] for spent in passed] for name in passed[0]} | {"all": [sum(spent.values()) for spent in passed]}
    for name, seconds in columns.items():
        print(f"  {name:<10}{1e3 * statistics.median(seconds):8.1f} ms   median {told_share([each / mean for each in seconds])}")


def told_share(shares: Sequence[float]) -> str:
    low, _, high = statistics.quantiles(shares, n=4)
    return f"{100 * statistics.median(shares):.2f} %  [{100 * low:.2f}, {100 * high:.2f}; most {100 * max(shares):.2f}]"


# --- evaluations -------------------------------------------------------------------------------------------------------------


def evaluations(problem: Problem) -> None:
    """Both loops from the same seeds, counted by the same gates, in the order of their evaluations."""
    rows = []
    for seed in range(SEEDS):
        for name, loop in {"stock": stock, "evokd": own}.items():
            trees, tries = loop(problem, seed)
            gates = sound_gates(problem) if name == "stock" else Funnel()  # what evokd's loop evaluates has passed them
            rows.append({"loop": name, "seed": seed} | counted(problem, trees, gates) | {"tries": tries})
            print("  " + "  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    write_rows("evaluations", [list(rows[0]), *(list(each.values()) for each in rows)])
    setting = f"{SEEDS} seeds, {GENERATIONS} generations of {SIZE}, space {problem.grammar.name}"
    print(f"evaluations, {problem.config.data}: {setting}; stock: cxpb {CROSSED}, mutpb {MUTATED}")
    for kind in ("texts", "sound texts", "directions", "sound directions", "sound"):
        tell_ratio(kind, *([r["evaluations"] / r[kind] for r in rows if r["loop"] == name] for name in ("stock", "evokd")))


def tell_ratio(kind: str, stock: Sequence[float], own: Sequence[float]) -> None:
    ratios = [a / b for a, b in zip(stock, own, strict=True)]
    each = f"stock {statistics.median(stock):.2f}, evokd {statistics.median(own):.2f}"
    told = f"× {statistics.median(ratios):.2f}  [{min(ratios):.2f}, {max(ratios):.2f}]"
    print(f"  evaluations for each of distinct {kind:<17}{each}   stock / evokd {told}")


def counted(problem: Problem, trees: Sequence[list], gates: Funnel) -> dict[str, int]:
    """What so many evaluations were of.

    texts: distinct canonical ones. directions: of the gradient, whatever its size, a loss without a fingerprint counting by its text.
    sound texts: those that static, probe and descent let through, sound directions: the same of directions. sound: what all gates let
    through, copies too, which are of one direction and near in size.
    """
    texts = {problem.grammar.write(tree): tree for tree in trees}
    sound = [tree for tree in texts.values() if not gates(tree)]
    copies = problem.funnel()
    only = Funnel({"copies": copies.gates["copies"]}, copies.admitted)
    return {
        "evaluations": len(trees),
        "texts": len(texts),
        "sound texts": len(sound),
        "directions": directions(problem, list(texts.values())),
        "sound directions": directions(problem, sound),
        "sound": sum(not only(tree) for tree in sound),
    }


def directions(problem: Problem, trees: Sequence[list]) -> int:
    found, nameless = [], 0
    for tree in trees:
        mine = problem.prints(tuple(to_names(tree)))
        if mine is None:
            nameless += 1
        elif all(cosine(mine, other) < 1 - SAME for other in found):
            found.append(mine)
    return len(found) + nameless


def sound_gates(problem: Problem) -> Funnel:
    """The gates that judge a loss by itself."""
    return Funnel({name: gate for name, gate in problem.funnel().gates.items() if name != "copies"})


def made_up(grammar: Grammar, tree: list) -> float:
    """In [0, 1], of the canonical tree: half of it smooth, the mean of a number for every node, and half of it rough, of the text."""
    tree = grammar.canonical(tree)
    smooth = statistics.fmean(derive(0, "node", node.name) / 2**63 for node in tree)
    return 0.5 * smooth + 0.5 * derive(0, "text", grammar.write(tree)) / 2**63


def own(problem: Problem, seed: int) -> tuple[list[list], int]:
    """(what evokd's loop evaluates, in order; how much it proposed)."""
    trees: list[list] = []

    def evaluate(batch: Sequence[Individual]) -> Iterator[Outcome]:
        for individual in batch:
            trees.append(list(individual))
            yield Outcome(Status.OK, made_up(problem.grammar, individual))

    budget = Budget(GENERATIONS, SIZE)
    search = Search("bench", problem.grammar, Evolution(problem.grammar, SIZE), problem.funnel(), evaluate, budget, seed)
    with tempfile.TemporaryDirectory() as folder:
        search.journal = Journal(Path(folder))
        search.run()
        search.journal.close()
    return trees, sum(each["proposed"] for each in search.history)


class Stock(gp.PrimitiveTree):
    """As `deap.creator` would make it: clones keep their fitness until they are varied."""

    def __init__(self, content: Sequence) -> None:
        super().__init__(content)
        self.fitness = Fitness()


def stock(problem: Problem, seed: int) -> tuple[list[list], int]:
    """(what eaSimple evaluates, in order; how often growth had to be tried again because it met a dead end).

    DEAP's crossover walks a set of classes, so that its trees differ from run to run.
    """
    trees: list[list] = []
    again: Counter = Counter()
    toolbox = stock_toolbox(problem.grammar, again)

    def evaluate(tree: Stock) -> tuple[float]:
        trees.append(problem.grammar.canonical(tree))
        return (made_up(problem.grammar, tree),)

    toolbox.register("evaluate", evaluate)
    with lend(stream(seed, "bench", "stock")):
        population = tools.initRepeat(list, toolbox.individual, SIZE)
        algorithms.eaSimple(population, toolbox, CROSSED, MUTATED, GENERATIONS - 1, verbose=False)
    return trees, again["tries"]


def stock_toolbox(grammar: Grammar, again: Counter) -> base.Toolbox:
    """What DEAP's examples of typed programming use, trees limited to the same height."""
    toolbox = base.Toolbox()
    grow = persistent(partial(gp.genHalfAndHalf, grammar.pset, 1, grammar.height), again)
    toolbox.register("individual", tools.initIterate, Stock, grow)
    toolbox.register("select", tools.selTournament, tournsize=3)
    toolbox.register("mate", gp.cxOnePoint)
    small = partial(gp.genGrow, min_=0, max_=2)
    toolbox.register("mutate", persistent(partial(gp.mutUniform, expr=small, pset=grammar.pset), again))
    for name in ("mate", "mutate"):
        toolbox.decorate(name, gp.staticLimit(operator.attrgetter("height"), grammar.height))
    return toolbox


def persistent(step: Callable, again: Counter) -> Callable:
    """The same, tried again after every dead end; a mutation then takes another node, as nothing small stands for a whole loss."""

    def at_last(*trees: Stock) -> object:
        while True:
            try:
                return step(*trees)
            except IndexError:
                again["tries"] += 1

    return at_last


# --- rejected ----------------------------------------------------------------------------------------------------------------


def rejected(problem: Problem) -> None:
    """Refused and passed losses of two spaces in turn, each trained from one seed of the protocol."""
    refused, passed, drawn = judged(problem)
    seeds = evaluation_seeds(0, "search", 1)
    rows = [(reason, text, fitness(problem, tree, seeds)) for reason, text, tree in [*refused, *passed]]
    write_rows("rejected", [("reason", "loss", problem.config.fitness), *rows])
    middle = statistics.median(value for *_, value in rows)
    plain = next(iter(problem.executor.map([Job(None, seeds)]))).fitness
    print(
        f"rejected, {problem.config.data}: {drawn} drawn, {len(refused)} refused, {len(passed)} that pass; median of all {middle:.2f},"
    )
    print(f"  of those that pass {statistics.median(v for r, _, v in rows if not r):.2f}, plain training {plain:.2f}")
    sound = statistics.median(value for reason, _, value in rows if not reason)
    for gate in [*Counter(reason.partition(":")[0] for reason, *_ in refused), ""]:
        values = [value for reason, _, value in rows if reason and reason.startswith(gate)]
        tell_half(gate or "all gates", values, middle, sound)
    for reason, text, value in sorted(rows, key=lambda each: -each[2]):
        if reason and value > middle:
            print(f"    {value:.2f}  {reason}  ←  {text}")
    tell_known(problem)


def judged(problem: Problem) -> tuple[list, list, int]:
    """(refused, passed: (reason, text, tree) each, trimmed as the loop trims them; trees drawn)."""
    gates, refused, passed = sound_gates(problem), [], []
    drawn, seen, grammars = 0, set(), [problem.grammar, loss_grammar(read_space("kd_zero").space, problem.grammar_positions)]
    for whole in islice(in_turn(grammars), DRAWS):
        drawn += 1
        tree = grammars[0].canonical(problem.trim(whole))
        text = grammars[0].write(tree)
        reason = gates(tree)
        home = refused if reason else passed
        if len(home) < EACH and text not in seen:
            seen.add(text)
            home.append((reason, text, tree))
        if len(refused) == EACH and len(passed) == EACH:
            break
    return refused, passed, drawn


def in_turn(grammars: Sequence[Grammar]) -> Iterator[list]:
    sources = [grown(grammar, "rejected", grammar.name) for grammar in grammars]
    return (next(source) for source in cycle(sources))


def fitness(problem: Problem, tree: list, seeds: tuple[int, ...]) -> float:
    """What one training gives; 0 for one that fails."""
    outcome = next(iter(problem.executor.map([problem.job(tree, seeds)])))
    return outcome.fitness if outcome.status is Status.OK else 0.0


def tell_half(gate: str, values: Sequence[float], *middles: float) -> None:
    """How many end in the upper half of all, and in that of those that pass."""
    all_, sound = (f"{n} ({100 * n / max(len(values), 1):.1f} %)" for n in (sum(v > m for v in values) for m in middles))
    print(f"  {gate:<10}refused {len(values):>3}, above the median of all {all_}, of those that pass {sound}")


def tell_known(problem: Problem) -> None:
    """Published losses that a gate refuses on this pair; those that read what it does not show are left out."""
    gates, looked = sound_gates(problem), 0
    for name, text in KNOWN.items():
        tree = parse_loss(text)
        if not fits(tree, problem):
            continue
        looked += 1
        if reason := gates(tree):
            print(f"  published loss refused: {name}: {reason}")
    print(f"  {looked} of {len(KNOWN)} published losses fit this pair")


def fits(tree: list, problem: Problem) -> bool:
    try:
        compile_loss(tree, *problem.examples[:2])
    except EvokdError:
        return False
    return True


PARTS: dict[str, Callable[[Problem], None]] = {"evaluations": evaluations, "cost": cost, "rejected": rejected}

if __name__ == "__main__":
    main(*sys.argv[1:])
