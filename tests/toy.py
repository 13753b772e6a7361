"""A toy language of sums and products, whose trees are numbers, and an evaluator that needs no training."""

import time

from evokd.genome.grammar import Grammar, Rule
from evokd.genome.individual import Outcome, Status
from evokd.journal import Journal, read_events, read_outcome
from evokd.run import Budget, Search, replay
from evokd.search.evolution import Evolution, default_toolbox
from evokd.search.random import RandomSearch

TARGET = 1000
LEAVES = ("1", "2", "3", "5", "7")


def toy_grammar(height: int = 5) -> Grammar:
    rules = [Rule(op, "number", ("number", "number")) for op in ("add", "mul")] + [Rule(leaf, "number") for leaf in LEAVES]
    return Grammar("toy", rules, "number", height, write=lambda tree: " ".join(node.name for node in tree))


def value_of(tree) -> int:
    """By a stack from the right, so that nothing is evaluated as code."""
    stack = []
    for node in reversed(list(tree)):
        if node.arity:
            a, b = stack.pop(), stack.pop()
            stack.append(a + b if node.name == "add" else a * b)
        else:
            stack.append(int(node.name))
    return stack[0]


def gate(tree) -> str:
    return "toy: a multiple of 13" if value_of(tree) % 13 == 0 else ""


def judge(tree) -> Outcome:
    value = value_of(tree)
    if value % 5 == 1:
        return Outcome(Status.DIVERGED, reason="toy: NaN", seconds=0.5)
    if value % 11 == 3:
        return Outcome(Status.CRASHED, reason="toy: raised", seconds=0.5)
    return Outcome(Status.OK, -float(abs(value - TARGET)), {"value": float(value)}, seconds=0.5)


def open_judge(recipe):
    """A worker's judge of node names, which takes `recipe` seconds more for some than for others."""
    nodes = toy_grammar().nodes

    def evaluate(names):
        time.sleep(recipe * (len(names) % 3))
        return judge([nodes[name] for name in names])

    return evaluate


class Toy:
    """A search on the toy language in a folder; `evaluated` lists every tree that was trained."""

    def __init__(
        self, folder, controller="evolution", *, generations=4, size=6, evaluations=None, seed=0, toolbox=default_toolbox
    ):
        self.folder, self.evaluated, self.grammar = folder, [], toy_grammar()
        made = Evolution(self.grammar, size, (), toolbox) if controller == "evolution" else RandomSearch(self.grammar)
        budget = Budget(generations, size, evaluations)
        self.search = Search(controller, self.grammar, made, gate, self.evaluate, budget, seed)
        self.controller = made

    def evaluate(self, batch):
        for individual in batch:
            self.evaluated.append(self.grammar.write(individual))
            yield judge(individual)

    def run(self) -> list[dict]:
        """The journal, after the search has gone on from whatever the folder holds."""
        self.folder.mkdir(exist_ok=True)
        if (self.folder / "events.jsonl").exists():
            self.resume()
        self.search.journal = Journal(self.folder)
        self.search.run()
        self.search.journal.close()
        return read_events(self.folder)

    def resume(self) -> None:
        import json

        kept = replay(self.search, read_events(self.folder), self.tree, read_outcome)
        (self.folder / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in kept))

    def tree(self, names):
        return [self.grammar.nodes[name] for name in names]
