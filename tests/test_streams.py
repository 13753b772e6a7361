import hashlib
import random

import pytest

from evokd.streams import derive, lend, stream


def test_a_seed_is_the_first_63_bits_of_a_sha256_of_the_names():
    digest = hashlib.sha256(b"7/evaluation/search/0").digest()
    assert derive(7, "evaluation", "search", 0) == int.from_bytes(digest[:8], "big") // 2
    assert derive(7) == int(hashlib.sha256(b"7").hexdigest()[:16], 16) // 2


def test_names_and_seeds_are_told_apart():
    assert len({derive(s, *names) for s in range(50) for names in (("a",), ("b",), ("a", 0), ("a", 1))}) == 200
    assert all(0 <= derive(s, "x") < 2**63 for s in range(100))


def test_a_stream_does_not_depend_on_other_draws():
    first = [stream(1, "x").random() for _ in range(2)]
    random.random()
    stream(1, "y").random()
    assert [stream(1, "x").random()] * 2 == first


def test_lending_seeds_the_global_generator_and_gives_it_back():
    random.seed(5)
    expected = random.random()
    random.seed(5)
    drawn = []
    for _ in range(2):
        with lend(stream(1, "x")):
            drawn.append(random.random())
    assert drawn[0] == drawn[1] != expected
    assert random.random() == expected


def test_lending_moves_the_lender_on():
    source, drawn = stream(1, "x"), []
    for _ in range(2):
        with lend(source):
            drawn.append(random.random())
    assert drawn[0] != drawn[1]


def test_the_global_generator_comes_back_after_an_error():
    def fails():
        with lend(stream(1, "x")):
            random.random()
            raise ValueError("inside")

    state = random.getstate()
    with pytest.raises(ValueError, match="inside"):
        fails()
    assert random.getstate() == state
