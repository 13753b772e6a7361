"""The family tree: what a journal tells of descent and changes, how it is laid out, and what is drawn of it."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from itertools import combinations, pairwise
from xml.etree import ElementTree

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import isotonic_regression

from evokd.errors import EvokdError
from evokd.genome.grow import grow_tree, random_chooser
from evokd.genome.variation import mutate_constant, mutate_node
from evokd.journal import individuals, read_events
from evokd.lineage import (
    Edit,
    changes,
    clean,
    duplicates,
    edits,
    family,
    family_tree,
    kind,
    pick,
    split,
    told,
    tuning,
    winner,
)
from evokd.report.layers import crossings, ordered, packed, places, routed, via
from evokd.report.lineage import FILES, ancestry, arrange, to_html, to_png, to_svg, write_end, write_lineage
from evokd.report.pedigree import brief, cut, wrapped
from evokd.streams import stream
from tests.genome.common import shipped
from tests.toy import Toy

HOSTILE = "</script><script>alert('x')</script><b a=\"1\"> & \\u003c $\\frac{1}$ ]]> \x1b[31m \ud800 \x00 é"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a search on the toy language."""
    folder = tmp_path_factory.mktemp("toy") / "run"
    Toy(folder, generations=8, size=8, seed=2).run()
    return folder


@pytest.fixture(scope="module")
def events(run):
    return read_events(run)


def born(id, generation=0, op="random", parents=(), text="", fitness=1.0, status="OK", reason="", tree=(), **metrics):
    """A journal's line of one candidate."""
    told = {
        "id": id,
        "generation": generation,
        "op": op,
        "parents": list(parents),
        "text": text or f"loss {id}",
        "tree": list(tree),
    }
    return {"event": "individual", **told, "fitness": fitness, "status": status, "reason": reason, "metrics": metrics}


def walk(events, start):
    """Ancestors straight from the journal's lines, one parent after the other."""
    parents = {event["id"]: event["parents"] for event in individuals(events)}
    found, waiting = set(), [start]
    while waiting:
        at = waiting.pop()
        if at not in found:
            found.add(at)
            waiting.extend(parents[at])
    return found


def picture(events, focus, everything=False):
    members = family(events)
    return arrange(members, set(members) if everything else ancestry(focus, members), focus, duplicates(events))


# descent


def test_ancestors_are_those_that_the_journal_leads_to(events):
    members = family(events)
    assert list(members) == [event["id"] for event in individuals(events)]
    assert max(len(walk(events, i)) for i in members) > 8
    for i in members:
        assert ancestry(i, members) == walk(events, i)


def test_a_parent_that_was_not_journalled_before_its_child_is_left_out():
    members = family([born(0), born(1, 1, "node", [7, 0]), born(2, 1, "node", [3]), born(3, 2, "node", [3, 2])])
    assert [members[i].parents for i in range(4)] == [(), (0,), (), (2,)]


def test_a_torn_journal_shows_what_is_whole(run, tmp_path):
    lines = (run / "events.jsonl").read_bytes().splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if b'"individual"' in line)
    (tmp_path / "events.jsonl").write_bytes(b"".join(lines[:last]) + lines[last][:40])
    events = read_events(tmp_path)
    members = family(events)
    assert members
    assert len(members) == sum(b'"individual"' in line for line in lines) - 1
    for path in write_end(tmp_path):
        assert path.stat().st_size > 1000
    assert "The run has not ended." in (tmp_path / "lineage.html").read_text()


def test_the_winner_is_the_one_that_the_end_names():
    lines = [born(0, text="a", fitness=3.0), born(1, text="b", fitness=2.0)]
    assert winner([*lines, {"event": "end", "best": "b"}], family(lines)) == 1
    assert winner([*lines, {"event": "end", "best": "b  (5,402 parameters)"}], family(lines)) == 1
    assert winner([*lines, {"event": "end", "best": "gone"}], family(lines)) == 0


def test_without_an_end_it_is_the_best_so_far_and_the_smaller_then_the_earlier_of_two_alike():
    lines = [
        born(0, fitness=1.0),
        born(1, fitness=5.0, tree="abc"),
        born(2, fitness=5.0, tree="ab"),
        born(3, fitness=5.0, tree="cd"),
    ]
    assert winner(lines, family(lines)) == 2
    assert winner(lines[:2], family(lines[:2])) == 1
    refused = [born(0, fitness=None, status="REJECTED")]
    assert winner(refused, family(refused)) is None


@pytest.mark.parametrize("spec", ["12", "#12", "i0012", "g004-i0012"])
def test_a_candidate_is_found_by_any_way_to_write_its_id(spec):
    assert pick(spec, family([born(12)])) == 12


@pytest.mark.parametrize("spec", ["13", "", "best", "12 ", "-1", "١٢", "12\n", "9" * 5000])
def test_an_id_that_is_not_there_is_refused_in_one_line(spec):
    with pytest.raises(EvokdError) as caught:
        pick(spec, family([born(12)]))
    assert "\n" not in str(caught.value)
    assert "12 to 12" in str(caught.value)


KINDS = {
    "founder": ("random", "seed@2", "prior", "policy"),
    "crossover": ("crossover", "crossover@1"),
    "mutation": ("constant", "node@0", "mutation"),
}


@pytest.mark.parametrize(("op", "expected"), [(op, name) for name, ops in KINDS.items() for op in ops])
def test_operators_are_of_three_kinds(op, expected):
    assert kind(op) == expected


# duplicates


def test_a_copy_names_the_candidate_whose_gradient_it_has():
    lines = [
        born(0, text="3*l1(logits)"),
        born(1, text="4*l2(logits)", tuned_from="2*l2(logits)"),
        born(2, status="REJECTED", fitness=None, reason="copy: same gradient as 3*l1(logits)"),
        born(3, status="REJECTED", fitness=None, reason="copy: 2.5 × the gradient of 2*l2(logits)"),
        born(4, status="REJECTED", fitness=None, reason="copy: same gradient as something else"),
        born(5, status="REJECTED", fitness=None, reason="probe: value nan"),
    ]
    assert [m.copy_of for m in family(lines).values()] == [None, None, 0, 1, None, None]
    cards = {card.member.id: card.marks for card in picture(lines, 0, everything=True).cards}
    assert cards == {0: "★≈1", 1: "≈1", 2: "≈", 3: "≈", 4: "", 5: ""}


def test_merged_proposals_are_told_by_generation(events):
    rows = {e["generation"]: (e["proposed"], e["proposed"] - e["new"]) for e in events if e["event"] == "generation"}
    assert duplicates(events) == rows
    assert sum(merged for _, merged in rows.values()) > 0
    focus = winner(events, family(events))
    for (_, _, _, note), generation in zip(
        picture(events, focus).columns, sorted({family(events)[i].generation for i in walk(events, focus)}), strict=True
    ):
        assert note == "{} proposed, {} merged".format(*rows[generation])


# changes


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("30*l1(logits)", "63*l1(logits)", ["30 → 63 in ·*l1(logits)"]),
        ("l1(logits)", "63*l1(logits)", ["1 → 63 in ·*l1(logits)"]),
        ("3*l1(logits)", "l1(logits)", ["3 → 1 in ·*l1(logits)"]),
        ("3*conf*l1(logits)", "3*l1(logits)", ["− conf in ·*3*l1(logits)"]),
        ("3*l1(logits)", "3*conf*l1(logits)", ["+ conf in 3*·*l1(logits)"]),
        ("3*l1(f(logits))", "3*l2(f(logits))", ["l1(…) → l2(…) in 3*·"]),
        ("kl(a(logits), tau=4)", "kl(a(logits), tau=2)", ["tau=4 → tau=2 in kl(a(logits), ·)"]),
        ("l1(a(logits))", "l1(b(a(logits)))", ["a(logits) → b(a(logits)) in l1(·)"]),
        ("l1(f(x)) + 2*l2(y)", "2*l2(y)", ["− l1(f(x))"]),
        ("2*l2(y)", "l1(f(x)) + 2*l2(y)", ["+ l1(f(x))"]),
        ("2*l2(b(y)) + 9*l1(a(x))", "9*l1(a(x)) + 4*l2(b(y))", ["2 → 4 in ·*l2(b(y))"]),
        ("ramp(0, 3)*l1(x)", "ramp(0, 5)*l1(x)", ["3 → 5 in ramp(0, ·)*l1(x)"]),
        ("same", "same", []),
        ("a + a", "a", ["− a"]),
        ("f(x", "f(y", ["f(x → f(y"]),
        ("f(a)(b)", "f(a)(c)", ["f(a)(b) → f(a)(c)"]),
        ("(" * 3000 + "a", "(" * 3000 + "b", ["(" * 3000 + "a → " + "(" * 3000 + "b"]),
    ],
)
def test_a_difference_is_told_where_it_is(before, after, expected):
    assert [str(edit) for edit in edits(before, after)] == expected


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([mutate_constant, mutate_node]))
def test_one_edit_of_a_real_loss_turns_the_parent_into_the_child(seed, mutate):
    grammar = shipped()
    draw = stream(seed, "lineage")
    tree = grammar.canonical(grow_tree(grammar, random_chooser(draw)))
    before, after = grammar.write(tree), grammar.write(grammar.canonical(mutate(type(tree)(tree), grammar, draw)[0]))
    found = edits(before, after)
    assert bool(found) == (before != after)
    if len(found) == 1 and found[0].before and found[0].after:
        (edit,) = found
        old, new = (edit.where.replace("·", text.replace("(…)", "(")) for text in (edit.before, edit.after))
        old, new = (text.removeprefix("1*") for text in (old, new))
        assert old.split("(")[0] in before
        assert new.split("(")[0] in after
        if "…" not in edit.before:
            assert sorted(new if term == old else term for term in split(before, " + ")) == sorted(split(after, " + "))


@given(st.text("ab()*+, 1", max_size=30), st.text("ab()*+, 1", max_size=30))
def test_any_two_texts_can_be_compared(before, after):
    assert bool(edits(before, after)) == (before != after)


def test_a_part_is_credited_to_the_parent_that_gave_it_as_a_whole():
    lines = [
        born(0, text="3*l1(logits) + 2*l2(embedding)"),
        born(1, text="63*l1(features[-1]) + 16*l2(f(embedding))"),
        born(2, 1, "crossover", [0, 1], "3*l1(logits) + 16*l2(embedding)"),
        born(3, 1, "crossover", [0, 1], "6*l1(logits) + 2*l2(embedding)"),
        born(4, 1, "crossover", [0, 1], "3*l1(logits) + 2*l2(f(embedding))"),
    ]
    members = family(lines)
    assert changes(members[0], members) == []
    assert changes(members[2], members) == [Edit("2", "16", "·*l2(embedding)", 1)]
    assert changes(members[3], members) == [Edit("3", "6", "·*l1(logits)", None)]
    assert changes(members[4], members) == [Edit("embedding", "f(embedding)", "2*l2(·)", 1)]
    assert told(members[2], members) == "crossover #0 × #1; 2 → 16 in ·*l2(embedding), from #1"


def test_a_student_is_compared_slot_by_slot():
    tree = ["net", "block=basic", "0<1=skip", "width=4"]
    lines = [
        born(0, text="x", tree=tree),
        born(1, text="y", tree=["net", "block=mobile", "0<1=none", "width=8"]),
        born(2, 1, "crossover", [0, 1], "z", tree=["net", "block=basic", "0<1=none", "width=4"]),
        born(3, 2, "node", [2], "u", tree=["net", "block=basic", "0<1=none", "width=8"]),
    ]
    members = family(lines)
    assert changes(members[2], members) == [Edit("skip", "none", "0<1", 1)]
    assert changes(members[3], members) == [Edit("4", "8", "width", None)]


def test_tuned_numbers_are_told_apart_from_what_the_operator_did():
    lines = [born(0, text="3*l1(logits)"), born(1, 1, "node", [0], "7*l2(logits)", tuned_from="3*l2(logits)")]
    members = family(lines)
    assert told(members[1], members) == "node #0; l1(…) → l2(…) in 3*·; tuned: 3 → 7 in ·*l2(logits)"
    assert tuning(members[0]) == []


def test_the_terminal_s_tree_tells_each_ancestor_once_and_repeats_by_number(events):
    members = family(events)
    for focus in members:
        lines = family_tree(focus, members)
        heads = [int(found[1]) for line in lines if (found := re.match(r"(?:│ )*● #(\d+) ", line))]
        again = [int(found[1]) for line in lines if (found := re.match(r"(?:│ )*○ #(\d+) as above", line))]
        assert len(heads) == len(set(heads))
        assert set(heads) == walk(events, focus)
        assert len(again) == sum(len(members[i].parents) for i in heads) - len(heads) + 1
        assert all(any(line.endswith(f"    {members[i].text}") for line in lines) for i in heads)


# layout


@st.composite
def layered(draw):
    """A graph whose nodes have columns and whose edges go forward, over any number of them."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    column = {node: at for node, at in enumerate(at for at, size in enumerate(sizes) for _ in range(size))}
    pairs = [(a, b) for a, b in combinations(column, 2) if column[a] < column[b]]
    graph = nx.DiGraph(draw(st.lists(st.sampled_from(pairs), max_size=12, unique=True)) if pairs else [])
    graph.add_nodes_from(column)
    return graph, column


@given(layered())
def test_edges_go_one_column_at_a_time_and_share_their_parent_s_lane(case):
    graph, column = case
    cut_graph, columns = routed(graph, column)
    assert all(columns[b] - columns[a] == 1 for a, b in cut_graph.edges)
    assert {node for node in cut_graph if not isinstance(node, tuple)} == set(graph)
    for parent, child in graph.edges:
        assert nx.is_path(cut_graph, via(parent, child, column))
    lanes = {p: max((column[c] - column[p] - 1 for c in graph.successors(p)), default=0) for p in graph}
    assert sum(isinstance(node, tuple) for node in cut_graph) == sum(lanes.values())


@given(layered())
def test_no_two_nodes_of_a_column_touch(case):
    graph, columns = routed(*case)

    def height(node):
        return 3.0 if isinstance(node, tuple) else 10.0 + 7 * (node % 3)

    middle = places(graph, columns, height, 4.0)
    assert min(y - height(node) / 2 for node, y in middle.items()) == pytest.approx(0)
    for a, b in combinations(middle, 2):
        if columns[a] == columns[b]:
            assert abs(middle[a] - middle[b]) >= (height(a) + height(b)) / 2 + 4 - 1e-6


@given(layered())
def test_crossings_are_counted_right_and_never_become_more(case):
    graph, columns = routed(*case)
    first = [[node for node in graph if columns[node] == at] for at in range(max(columns.values()) + 1)]
    best = ordered(graph, columns)
    assert [sorted(map(str, nodes)) for nodes in best] == [sorted(map(str, nodes)) for nodes in first]
    place = {node: i for nodes in best for i, node in enumerate(nodes)}
    crossing = [
        (place[a] - place[c]) * (place[b] - place[d]) < 0
        for (a, b), (c, d) in combinations(graph.edges, 2)
        if columns[a] == columns[c]
    ]
    assert crossings(graph, best) == sum(crossing)
    assert sum(crossing) <= crossings(graph, first)


def test_a_tangle_is_untangled():
    graph = nx.DiGraph()
    graph.add_nodes_from([*range(8), *range(10, 18)])
    graph.add_edges_from((a, 10 + (3 * a) % 8) for a in range(8))
    assert crossings(graph, [list(range(8)), list(range(10, 18))]) > 5
    assert crossings(graph, ordered(graph, {node: node // 10 for node in graph})) == 0


@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(1, 30)), min_size=1, max_size=12), st.floats(0, 10))
def test_packing_moves_as_little_as_it_must(rows, gap):
    wanted, heights = (list(column) for column in zip(*rows, strict=True))
    found = packed(wanted, list(range(len(rows))), lambda node: heights[node], gap)
    offsets = np.concatenate([[0], np.cumsum([(a + b) / 2 + gap for a, b in pairwise(heights)])])
    assert found == pytest.approx(isotonic_regression(np.array(wanted) - offsets) + offsets, abs=1e-6)


def test_generations_are_columns_and_links_join_cards(events):
    focus = winner(events, family(events))
    for everything in (False, True):
        shown = picture(events, focus, everything)
        cards = {card.member.id: card for card in shown.cards}
        lefts = sorted({card.box[0] for card in shown.cards})
        generations = sorted({card.member.generation for card in shown.cards})
        assert [lefts.index(c.box[0]) for c in cards.values()] == [generations.index(c.member.generation) for c in cards.values()]
        assert [column[0] for column in shown.columns] == lefts
        assert {(link.parent, link.child) for link in shown.links} == {(p, i) for i, c in cards.items() for p in c.member.parents}
        for link in shown.links:
            x, y, width, height = cards[link.parent].box
            assert link.start == pytest.approx((x + width, y + height / 2))
            x, y, _, height = cards[link.child].box
            assert link.pieces[-1][-1] == pytest.approx((x, y + height / 2))
            assert link.first == (cards[link.child].member.parents[0] == link.parent)
        assert all(
            c.box[0] >= 0 and c.box[0] + c.box[2] <= shown.width and c.box[1] + c.box[3] <= shown.height for c in cards.values()
        )
        assert shown.lit == walk(events, focus)


def test_the_best_is_the_darkest_and_a_failure_has_no_colour():
    lines = [born(i, fitness=float(i)) for i in range(5)] + [born(5, fitness=None, status="DIVERGED", reason="NaN")]
    cards = {card.member.id: card for card in picture(lines, 4, everything=True).cards}
    light = [sum(bytes.fromhex(cards[i].colour[1:])) for i in range(5)]
    assert light == sorted(light, reverse=True)
    assert light[0] > light[4]
    assert cards[5].colour is None
    assert (cards[0].dark, cards[4].dark) == (False, True)


@given(st.text("ab(,)+* -", max_size=80), st.integers(4, 20), st.integers(1, 5))
def test_wrapped_lines_hold_the_whole_text_or_say_that_they_do_not(text, width, most):
    lines = wrapped(text, width, most)
    assert all(len(line) <= width for line in lines)
    assert len(lines) <= most
    if not lines or not lines[-1].endswith("…"):
        assert "".join("".join(lines).split()) == "".join(text.split())


def test_a_text_cut_short_ends_in_dots():
    assert wrapped("aaaa(bbbb, cccc, dddd)", 10, 2) == ["aaaa(bbbb,", "cccc,…"]
    assert (cut("abcdef", 6), cut("abcdef", 5)) == ("abcdef", "abcd…")
    assert brief(Edit("f(aaaaaaaaaaaa)", "g(b)", "h(·)"), 14) == "f(aaaa… → g(b)"
    assert brief(Edit("3", "4", "·*l1(x)"), 30) == "3 → 4 in ·*l1(x)"


# pictures


class Seen(HTMLParser):
    """What a browser would make of a page: elements with their attributes, and the text of scripts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] == "script" and self.cdata_elem == "script":
            self.scripts[-1] += data

    @property
    def ids(self):
        return [int(attrs["data-id"]) for _, attrs in self.elements if "data-id" in attrs]


def page(events, focus, everything=False):
    return to_html(picture(events, focus, everything), f"tree of {focus}", events, family(events))


def test_the_page_holds_every_ancestor_exactly_once(events):
    members = family(events)
    for focus in members:
        ids = Seen(page(events, focus)).ids
        assert len(ids) == len(set(ids))
        assert set(ids) == walk(events, focus)
    assert sorted(Seen(page(events, 0, everything=True)).ids) == sorted(members)


def test_the_page_s_data_tell_each_candidate_whole(events):
    members = family(events)
    focus = winner(events, members)
    data = json.loads(Seen(page(events, focus)).scripts[0])
    assert data["focus"] == focus
    raw = {event["id"]: event for event in individuals(events)}
    assert {row["id"] for row in data["members"]} == walk(events, focus)
    for row in data["members"]:
        event = raw[row["id"]]
        assert (row["text"], row["op"], row["parents"]) == (event["text"], event["op"], event["parents"])
        assert (row["generation"], row["status"], row["fitness"]) == (
            event["generation"],
            event["status"],
            f"{event['fitness']:.2f}",
        )


def test_the_page_asks_no_network_and_runs_its_own_script_alone(events):
    text = page(events, winner(events, family(events)))
    seen = Seen(text)
    assert not [attrs for _, attrs in seen.elements if {"src", "href", "action", "data"} & set(attrs)]
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "url(" not in text
    assert "@import" not in text
    policy = next(attrs["content"] for tag, attrs in seen.elements if attrs.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(seen.scripts[1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert not [name for _, attrs in seen.elements for name in attrs if name.startswith("on")]


def hostile():
    lines = [
        born(0, text=HOSTILE, op=HOSTILE),
        born(1, 1, HOSTILE, [0], HOSTILE + "2", tuned_from=HOSTILE + "3", **{HOSTILE: 1.0}),
    ]
    return [*lines, born(2, 1, "node", [0], HOSTILE + "4", fitness=None, status="CRASHED", reason=HOSTILE)]


@pytest.mark.parametrize("focus", [1, 2])
@pytest.mark.parametrize("count", [0, 20])  # few candidates are drawn as cards, many small
def test_hostile_text_stays_text(focus, count, tmp_path):
    lines = hostile() + [born(10 + i, 1, "node", [0], HOSTILE + str(i)) for i in range(count)]
    members, shown = family(lines), picture(lines, focus, everything=True)
    assert shown.small == bool(count)
    text = to_html(shown, HOSTILE, lines, members)
    seen, calm = Seen(text), Seen(page([born(0), born(1, 1, "node", [0])], 1))
    assert [tag for tag, _ in seen.elements if tag in ("script", "b")] == ["script", "script"]
    assert seen.scripts[1] == calm.scripts[1]
    assert not {"<", ">", "&"} & set(seen.scripts[0])
    rows = {row["id"]: row for row in json.loads(seen.scripts[0])["members"]}
    assert rows[1]["text"] == clean(HOSTILE) + "2"
    assert rows[2]["reason"] == clean(HOSTILE)
    root = ElementTree.fromstring(to_svg(shown, clean(HOSTILE)))
    assert not [element for element in root.iter() if element.tag.rpartition("}")[2] in ("script", "b")]
    hints = [element.find(f"{SVG}title").text for element in root.iter(f"{SVG}g") if element.get("data-id") == "1"]
    assert hints == [f"#1 {clean(HOSTILE)} 1.00: {clean(HOSTILE)}2"]
    paths = write_lineage(tmp_path, "hostile", lines, members, focus, everything=True)
    assert [path.name for path in paths] == list(FILES)
    assert "\x1b" not in "".join(family_tree(focus, members))


def test_text_is_cleaned_of_what_terminals_and_xml_cannot_take():
    assert clean("a\x1b[1mb\ud800\x00\x9b\nc\uffff é ≈") == "a\ufffd[1mb\ufffd\ufffd\ufffd\ufffdc\ufffd é ≈"


def test_the_svg_stands_alone_with_every_candidate_and_link(events):
    focus = winner(events, family(events))
    shown = picture(events, focus, everything=True)
    root = ElementTree.fromstring(to_svg(shown, "all"))
    cards = [element for element in root.iter(f"{SVG}g") if element.get("data-id")]
    links = [(int(e.get("data-from")), int(e.get("data-to"))) for e in root.iter(f"{SVG}path")]
    assert sorted(int(card.get("data-id")) for card in cards) == sorted(family(events))
    assert sorted(links) == sorted((p, m.id) for m in family(events).values() for p in m.parents)
    dim = {int(card.get("data-id")) for card in cards if "dim" in card.get("class")}
    assert dim == set(family(events)) - walk(events, focus)
    assert [card.get("data-id") for card in cards if "focus" in card.get("class").split()] == [str(focus)]


def test_the_png_frames_the_focus_in_red(events, tmp_path):
    from matplotlib.image import imread

    focus = winner(events, family(events))
    for everything in (False, True):
        shown = picture(events, focus, everything)
        path = tmp_path / "x.png"
        path.write_bytes(to_png(shown, "title"))
        pixels = imread(path)[:, :, :3]
        scale = pixels.shape[1] / shown.width
        assert pixels.shape[0] == pytest.approx((shown.height + 30) * scale, abs=2)
        for card in shown.cards:
            x, y, width, _ = card.box
            edge = pixels[int((y + 30) * scale) - 3 : int((y + 30) * scale) + 4, int((x + width / 2) * scale)]
            red = (np.abs(edge - np.array([0xD1, 0x49, 0x5B]) / 255).max(1) < 0.1).any()
            assert red == (card.member.id == focus)


def test_a_run_s_end_leaves_three_whole_files_and_a_run_without_training_none(run, tmp_path):
    (tmp_path / "events.jsonl").write_bytes((run / "events.jsonl").read_bytes())
    assert write_end(tmp_path) == [tmp_path / name for name in FILES]
    assert {path.name for path in tmp_path.iterdir()} == {"events.jsonl", *FILES}
    line = born(0, fitness=None, status="REJECTED", reason="probe: nan")
    (tmp_path / "events.jsonl").write_text(json.dumps(line) + "\n")
    assert write_end(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_one_line(events, tmp_path):
    members = family(events)
    (tmp_path / "file").write_text("")
    with pytest.raises(EvokdError, match="that can be written"):
        write_lineage(tmp_path / "file", "x", events, members, 0)
