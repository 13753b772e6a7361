"""A toy language small enough to enumerate by hand, and ways to look at trees."""

from itertools import product

from evokd.genome.grammar import Grammar, Rule

POSITIONS = ("logits", "embedding", "features[-1]", "features[-2]")

TOY = (
    Rule("pair", "S", ("A", "B")),
    Rule("one", "S", ("A",)),
    Rule("up", "A", ("A",)),
    Rule("from_b", "A", ("B",)),
    Rule("a", "A"),
    Rule("b", "B"),
    Rule("b2", "B"),
    Rule("stuck", "B", ("Never",)),
)


def toy(height=3, rules=TOY, root="S"):
    return Grammar("toy", rules, root, height, write=lambda tree: " ".join(node.name for node in tree))


def shipped(name="compact"):
    from evokd.losses.growth import loss_grammar  # here, so that what needs only the toy starts without torch
    from evokd.space import read_space

    return loss_grammar(read_space(name).space, POSITIONS)


def enumerate_trees(rules, kind, height):
    """Every tree as a tuple of names, straight from the meaning of the rules."""
    if height < 0:
        return
    for rule in rules:
        if rule.ret == kind:
            for below in product(*(list(enumerate_trees(rules, arg, height - 1)) for arg in rule.args)):
                yield (rule.name, *(name for part in below for name in part))


def nested(tree):
    """A prefix list as nested tuples (node, subtrees…); fails on a list that is not exactly one tree."""
    nodes = list(tree)

    def take():
        node = nodes.pop(0)
        return (node, *(take() for _ in range(node.arity)))

    found = take()
    assert not nodes, "nodes left over"
    return found


def height_of(tree):
    def measure(part):
        return max((1 + measure(below) for below in part[1:]), default=0)

    return measure(nested(tree))


def well_typed(tree, root):
    def check(part, kind):
        assert part[0].ret is kind, (part[0].name, kind)
        for below, wanted in zip(part[1:], part[0].args if part[0].arity else (), strict=True):
            check(below, wanted)

    check(nested(tree), root)
    return True
