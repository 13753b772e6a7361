from evokd.genome.grammar import subtree_heights
from evokd.search.random import RandomSearch
from evokd.streams import stream
from tests.toy import toy_grammar


def test_proposals_are_grown_within_the_grammar_from_the_given_stream_alone():
    grammar = toy_grammar(4)
    draw, again = stream(1, "x"), stream(1, "x")
    search = RandomSearch(grammar)
    trees = [search.ask(0, draw) for _ in range(200)]
    assert max(subtree_heights(t)[0] for t in trees) == 4
    search.tell(trees)
    assert [list(RandomSearch(grammar).ask(5, again)) for _ in range(200)] == [list(t) for t in trees]
    assert all((t.op, t.parents) == ("random", ()) for t in trees)
