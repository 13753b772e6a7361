import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evokd.errors import EvokdError
from evokd.genome.individual import rank
from evokd.journal import individuals, without_clock
from evokd.search.ageing import AgeingEvolution
from evokd.search.diswot import DiswotEvolution
from evokd.search.evolution import Evolution
from evokd.search.islands import Islands
from evokd.search.random import RandomSearch
from evokd.streams import stream
from tests.search.test_ageing import (
    assert_only_history_counts,
    assert_resumes_from_any_line,
    describe,
    searched,
    settled,
)
from tests.toy import toy_grammar

GRAMMAR = toy_grammar()


class Spy:
    """A controller that writes down what it is told, and proposes as another would."""

    def __init__(self, inner=None):
        self.inner, self.told, self.asked = inner or RandomSearch(GRAMMAR), [], 0

    def ask(self, generation, draw):
        self.asked += 1
        return self.inner.ask(generation, draw)

    def tell(self, individuals):
        self.told.append(list(individuals))
        self.inner.tell(individuals)


def native(number: int, island: int | None, fitness: float | None):
    made = settled(GRAMMAR, "1", number, fitness)
    made.op = "node" if island is None else f"node@{island}"
    return made


def ids(batches) -> list[list[int]]:
    return [[i.id for i in batch] for batch in batches]


def island_of(event: dict) -> int:
    return int(event["op"].split("@")[1])


def test_islands_are_asked_in_turn_from_the_first_in_each_generation():
    spies = [Spy(), Spy(), Spy()]
    islands = Islands(spies)
    assert [islands.ask(0, stream(n)).op for n in range(5)] == ["random@0", "random@1", "random@2", "random@0", "random@1"]
    islands.tell([])
    assert [islands.ask(1, stream(n)).op for n in range(2)] == ["random@0", "random@1"]
    assert [spy.asked for spy in spies] == [3, 3, 1]


def test_a_proposal_is_its_islands_own_but_for_the_mark():
    evolution, other = Evolution(GRAMMAR, 4), Evolution(GRAMMAR, 4)
    for each in (evolution, Islands([other])):
        each.tell([native(n, 0, float(n)) for n in range(4)])
    for n in range(40):
        mine, theirs = evolution.ask(1, stream(n)), Islands([other]).ask(1, stream(n))
        assert describe(theirs) == (describe(mine)[0], f"{mine.op}@0", mine.parents)


def test_an_individual_comes_home_to_its_island_in_the_order_of_proposal():
    spies = [Spy(), Spy()]
    Islands(spies, every=9).tell(
        [native(0, 1, 1.0), native(1, 0, None), native(2, 1, None), native(3, 0, 2.0), native(4, 1, 3.0)]
    )
    assert [ids(spy.told) for spy in spies] == [[[1, 3]], [[0, 2, 4]]]


def test_what_no_island_proposed_is_dealt_out_by_id():
    spies = [Spy(), Spy(), Spy()]
    Islands(spies, every=9).tell([native(n, None, 1.0) for n in range(7)])
    assert [ids(spy.told) for spy in spies] == [[[0, 3, 6]], [[1, 4]], [[2, 5]]]


def test_the_best_go_to_the_next_in_the_ring_and_none_is_told_twice():
    """By hand: islands of two, one migrant each second generation, all of them leaving at one time."""
    spies = [Spy(), Spy(), Spy()]
    islands = Islands(spies, every=2, migrants=1)
    islands.tell([native(0, 0, 9.0), native(1, 1, 5.0), native(2, 2, None), native(3, 2, 1.0)])
    islands.tell([native(4, 0, 2.0), native(5, 1, 6.0)])
    assert [ids(spy.told) for spy in spies] == [[[0], [4, 3]], [[1], [5, 0]], [[2, 3], [5]]]
    islands.tell([native(6, 2, 7.0)])
    islands.tell([])  # 0 has gone from island 0 to 1 and goes on to 2, whose best, 6, goes to 0; 1 knows 0, the best of 0
    assert [ids(spy.told[2:]) for spy in spies] == [[[], [6]], [[], []], [[6], [0]]]
    islands.tell([])
    islands.tell([])  # 0 is home again: its island knows it, and so do all others
    assert [ids(spy.told[4:]) for spy in spies] == [[[], []]] * 3


def test_failures_do_not_travel():
    spies = [Spy(), Spy()]
    Islands(spies, every=1, migrants=3).tell([native(0, 0, None), native(1, 0, 4.0)])
    assert [ids(spy.told) for spy in spies] == [[[0, 1]], [[1]]]


def test_one_island_is_its_controller_alone(tmp_path):
    """The same search, but for the mark."""
    alone = searched(tmp_path / "a", lambda grammar: Evolution(grammar, 5), generations=8, size=5)
    island = searched(tmp_path / "b", lambda grammar: Islands([Evolution(grammar, 5)], every=1), generations=8, size=5)
    unmarked = [e | {"op": e["op"].removesuffix("@0")} if "op" in e else e for e in without_clock(island)]
    assert unmarked == without_clock(alone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "islands, every: expected at least 1, got 0"),
        ({"migrants": -1}, "islands, migrants: expected at least 0, got -1"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(options, message):
    with pytest.raises(EvokdError, match=message):
        Islands([Spy()], **options)
    with pytest.raises(EvokdError, match="islands, islands: expected at least 1, got 0"):
        Islands([])


generations = st.lists(st.lists(st.tuples(st.integers(0, 2), st.none() | st.integers(0, 5)), max_size=6), min_size=1, max_size=8)


@given(generations, st.integers(1, 3), st.integers(0, 3))
def test_the_ring_by_its_definition(history, every, migrants):
    """All that each island hears, from a plain loop over what the islands before it heard."""
    spies, number, heard = [Spy(), Spy(), Spy()], 0, [[], [], []]
    islands = Islands(spies, every, migrants)
    for generation, places in enumerate(history, 1):
        batch = [native(number + n, *place) for n, place in enumerate(places)]
        number += len(batch)
        for individual in batch:
            heard[int(individual.op[-1])].append(individual)
        before = [list(known) for known in heard]
        for island in range(3) if generation % every == 0 else ():
            sound = sorted((i for i in before[(island + 2) % 3] if i.ok), key=rank)[:migrants]
            heard[island] += [i for i in sound if all(i is not other for other in before[island])]
        islands.tell(batch)
    for spy, known in zip(spies, heard, strict=True):
        assert len(spy.told) == len(history)
        assert [i.id for batch in spy.told for i in batch] == [i.id for i in known]
        assert len({i.id for i in known}) == len(known)


# --- in the loop ----------------------------------------------------------------------------------------------------------------


def three(grammar, **options):
    return Islands([Evolution(grammar, 5), DiswotEvolution(grammar, 5), AgeingEvolution(grammar, 5, 3)], **options)


def evolutions(grammar, **options):
    return Islands([Evolution(grammar, 6) for _ in range(3)], **options)


@pytest.mark.parametrize("make", [three, evolutions])
def test_a_cut_search_resumes(tmp_path, make):
    assert_resumes_from_any_line(tmp_path, make)


@pytest.mark.parametrize("make", [three, evolutions])
def test_its_state_is_what_it_was_told(make):
    assert_only_history_counts(make)


def spied(tmp_path, generations=12, size=9, seed=0, **options) -> tuple[list[dict], list[Spy]]:
    """Events of a search of three islands, and what each was told."""
    spies = [Spy(Evolution(GRAMMAR, 6)) for _ in range(3)]
    events = searched(tmp_path / "run", lambda grammar: Islands(spies, **options), generations=generations, size=size, seed=seed)
    return list(individuals(events)), spies


def test_without_migrants_islands_never_meet(tmp_path):
    events, spies = spied(tmp_path, migrants=0)
    home = {e["id"]: island_of(e) for e in events}
    varied = [e for e in events if e["parents"]]
    assert Counter(island_of(e) for e in varied).keys() == {0, 1, 2}
    assert all(home[parent] == island_of(e) for e in varied for parent in e["parents"])
    for island, spy in enumerate(spies):
        assert [i.id for batch in spy.told for i in batch] == [e["id"] for e in events if island_of(e) == island]


@pytest.mark.parametrize("seed", range(3))
def test_parents_live_on_the_island_or_came_by_migration(tmp_path, seed):
    events, spies = spied(tmp_path, seed=seed, every=2, migrants=2)
    home = {e["id"]: island_of(e) for e in events}
    foreign = 0
    for e in events:
        island = island_of(e)
        heard = {i.id for batch in spies[island].told[: e["generation"]] for i in batch}
        next_door = {i.id for batch in spies[island - 1].told[: e["generation"]] for i in batch}
        assert set(e["parents"]) <= heard
        strangers = {parent for parent in e["parents"] if home[parent] != island}
        assert strangers <= next_door
        foreign += len(strangers)
    assert foreign > 0


def test_migrants_arrive_in_every_second_generation_alone(tmp_path):
    events, spies = spied(tmp_path, every=2)
    home = {e["id"]: island_of(e) for e in events}
    arrivals = {g for k, spy in enumerate(spies) for g, batch in enumerate(spy.told) for i in batch if home[i.id] != k}
    assert arrivals
    assert all(generation % 2 == 1 for generation in arrivals)


def test_an_island_that_has_run_dry_leaves_its_share_to_the_others(tmp_path):
    """One island knows five leaves and nothing else; the loop goes on asking and fills its generations."""
    events = searched(
        tmp_path / "run", lambda grammar: Islands([RandomSearch(toy_grammar(0)), RandomSearch(grammar)]), generations=5, size=8
    )
    found = list(individuals(events))
    assert Counter(island_of(e) for e in found)[0] <= 5
    assert [e["trained"] for e in events if e["event"] == "generation"] == [8] * 5


def test_the_island_is_journalled_with_the_operator(tmp_path):
    events, _ = spied(tmp_path)
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    assert {e["op"].split("@")[0] for e in events} == {"random", "crossover", "subtree", "node", "insert", "shrink", "constant"}
    assert sum("@" in json.loads(line).get("op", "") for line in lines) == len(events)
