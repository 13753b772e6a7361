"""The tree picture says what the notation says, and no two nodes of a level stand on one place."""

from collections import Counter

import pytest

from evokd.losses.known import KNOWN
from evokd.losses.language import parse_loss, to_terms
from evokd.report.loss_tree import Node, draw_tree, picture, places

TWO = "0.5*focal*l2(norm_C(mm(features[-1]))) + kl(student.temper(logits, tau=2), tau=4)"


def test_the_picture_of_a_sum():
    features = Node("features[-1]", "position", ())
    maps = Node("norm_C", "transform", (Node("mm", "transform", (features,)),))
    tempered = Node("student.temper\ntau=2", "transform", (Node("logits", "position", ()),))
    assert picture(TWO) == Node(
        "+",
        "sum",
        (
            Node("× 0.5\nfocal", "weight", (Node("l2", "distance", (maps,)),)),
            Node("× 1", "weight", (Node("kl\ntau=4", "distance", (tempered,)),)),
        ),
    )


@pytest.mark.parametrize("text", [*KNOWN.values(), TWO])
def test_every_published_loss_has_a_picture_without_collisions(text):
    standing = places(picture(text))
    calls = sum(1 for term in to_terms(parse_loss(text)) for _ in term.distance.walk())
    terms = len(to_terms(parse_loss(text)))
    assert len(standing) == calls + terms + (terms > 1)
    assert max(Counter((p.x, p.y) for p in standing).values()) == 1
    above = {(p.x, p.y) for p in standing}
    assert all(p.above is None or (p.above in above and p.above[1] == p.y - 1) for p in standing)
    assert [p.y for p in standing if p.above is None] == [0]


def test_it_is_written_as_svg_and_png(tmp_path):
    svg = draw_tree(tmp_path, "3*kl(logits, tau=4)")
    assert svg.startswith("<svg")
    assert (tmp_path / "figures" / "tree.svg").read_text().endswith(svg)
    assert (tmp_path / "figures" / "tree.png").read_bytes()[:4] == b"\x89PNG"
    assert draw_tree(None, "3*kl(logits, tau=4)") == svg
