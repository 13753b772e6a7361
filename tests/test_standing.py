from hypothesis import given
from hypothesis import strategies as st

from evokd.funnel import stopped
from evokd.genome.individual import Individual, Outcome, Status, rank
from evokd.standing import Standing

OUTCOMES = st.sampled_from([
    Outcome(Status.OK, 1.0), Outcome(Status.OK, 2.0), Outcome(Status.REJECTED, reason="static: none"),
    Outcome(Status.REJECTED, reason="rung 1: place 3 of 4 with 1"), Outcome(Status.DIVERGED), Outcome(Status.CRASHED, reason="rung 1: x"),
])  # fmt: skip


@given(st.lists(st.tuples(OUTCOMES, st.integers(1, 9), st.booleans()), max_size=30))
def test_what_is_kept_as_outcomes_arrive_is_what_a_look_at_all_finds(told):
    individuals, standing, generation = [], None, 0
    standing = Standing(individuals)
    for number, (outcome, size, new) in enumerate(told):
        generation += new
        individual = Individual([None] * size)
        individual.id, individual.generation = number, generation
        individuals.append(individual)
        standing.caught_up()  # it has no outcome yet
        individual.settle(outcome)
        standing.caught_up()
        sound = [i for i in individuals if i.ok]
        counted = [i.outcome for i in individuals if i.outcome.status is not Status.REJECTED and not stopped(i.outcome)]
        assert standing.trained == len(counted)
        assert standing.best is (min(sound, key=rank) if sound else None)
        assert standing.size == (sum(map(len, sound)) / len(sound) if sound else None)
        assert list(standing.born(generation)) == [i for i in individuals if i.generation == generation]


def test_one_that_is_in_flight_holds_up_those_behind_it():
    first, second = Individual([None]), Individual([None])
    standing = Standing([first, second])
    second.settle(Outcome(Status.OK, 1.0))
    assert standing.caught_up().trained == 0
    first.settle(Outcome(Status.OK, 2.0))
    assert standing.caught_up().trained == 2
