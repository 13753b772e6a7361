"""The family tree of a candidate as a picture: one layout, drawn as SVG, as PNG and as a page that can be explored without a network."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from evokd.checkpoint import write_whole
from evokd.errors import EvokdError
from evokd.journal import read_events
from evokd.lineage import Member, changes, duplicates, family, fitness_of, kind, tuning, winner
from evokd.report.pedigree import SIZE, Card, Link, Picture, ancestry, arrange, blend, cut, to_graphml

PIXELS = 20_000  # of a PNG's longer side
INK, MUTED, FAINT, RULE, RED, BAND = "#1a1a2e", "#5c6470", "#9aa2ae", "#c4ccd8", "#d1495b", "#f4f6fa"
TINTS = {"founder": ("#dff3e4", "#1d6b3a"), "crossover": ("#ece3fa", "#5a2ca0"), "mutation": ("#fdebd3", "#8a4b08")}
FILES = ("lineage.html", "lineage.svg", "lineage.png", "lineage.graphml")
_PAGE = Path(__file__).with_suffix(".html")


def write_end(folder: Path) -> list[Path]:
    """The pictures of a finished run's winner, for its folder and its mirror; none where nothing was trained."""
    events = read_events(folder)
    members = family(events)
    focus = winner(events, members)
    return [] if focus is None else write_lineage(folder, folder.name, events, members, focus)


def write_lineage(
    target: Path, name: str, events: Sequence[dict], members: Mapping[int, Member], focus: int | None, everything: bool = False
) -> list[Path]:
    """lineage.html, .svg, .png and .graphml in a folder; their paths. The last is for Gephi, yEd, Cytoscape or networkx.

    Args:
        target: the folder, made if missing.
        name: of the run.
        events: its journal.
        members: the candidates in it.
        focus: whose tree it is; None only with everything.
        everything: draw all candidates, not only the ancestors of the focus.

    Raises:
        EvokdError: a folder that cannot be written.
    """
    shown = set(members) if everything else ancestry(focus, members)
    picture = arrange(members, shown, focus, duplicates(events))
    title = (f"Family tree of #{focus}" if not everything else "Family tree of all candidates") + f" · {name}"
    paths = [target / file for file in FILES]
    try:
        target.mkdir(parents=True, exist_ok=True)
        write_whole(paths[0], to_html(picture, title, events, members))
        write_whole(paths[1], to_svg(picture, title))
        part = paths[2].with_name(paths[2].name + ".part")
        part.write_bytes(to_png(picture, title))
        part.replace(paths[2])
        write_whole(paths[3], to_graphml(members, shown))
    except OSError as error:
        raise EvokdError(str(target), "a folder that can be written", error.strerror or str(error)[:80]) from None
    return paths


_STYLE = f"""
text{{font:10.5px system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif;fill:{INK}}}
.m{{font-family:ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:{SIZE}px;white-space:pre}}
.b{{font-weight:700;font-size:12px}} .n{{fill:{MUTED};font-size:10px}} .g{{font-weight:600;font-size:12px}}
.box{{fill:#fff;stroke:{RULE}}} .failed .box{{stroke-dasharray:4 3;fill:#fbfbfc}} .failed text{{fill:{MUTED}}}
.focus .box{{stroke:{RED};stroke-width:2.5}} .star{{fill:{RED}}}
.edge{{fill:none;stroke:#8a94a6;stroke-width:1.6}} .gave{{stroke:#8657c8;stroke-dasharray:5 3}} .dim{{opacity:.3}} .card.dim{{opacity:.42}}
""".strip()


def to_svg(picture: Picture, title: str) -> str:
    """A file that stands alone."""
    note = f'<text class="b" x="12" y="20">{html.escape(title)}</text>'
    size = f'width="{picture.width:.0f}" height="{picture.height + 30:.0f}" viewBox="0 0 {picture.width:.0f} {picture.height + 30:.0f}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}><title>{html.escape(title)}</title><style>{_STYLE}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>{note}<g transform="translate(0 30)">{_drawing(picture)}</g></svg>\n'
    )


def _drawing(picture: Picture) -> str:
    """Columns, then links, then cards above them."""
    parts = []
    for at, (x, width, title, note) in enumerate(picture.columns):
        band = (
            f'<rect x="{x - 8:.1f}" width="{width + 16:.1f}" height="{picture.height:.1f}" rx="8" fill="{BAND}"/>'
            if at % 2 == 0
            else ""
        )
        parts.append(
            f'{band}<text class="g" x="{x + width / 2:.1f}" y="18" text-anchor="middle">{title}</text>'
            f'<text class="n" x="{x + width / 2:.1f}" y="33" text-anchor="middle">{note}</text>'
        )
    parts += [_svg_link(link, link.child in picture.lit) for link in picture.links]
    parts += [_svg_card(card, picture.focus, card.member.id in picture.lit) for card in picture.cards]
    return "\n".join(parts)


def _svg_link(link: Link, lit: bool) -> str:
    point = lambda p: f"{p[0]:.1f} {p[1]:.1f}"  # noqa: E731
    pieces = " ".join(("C" if len(piece) == 3 else "L") + " ".join(map(point, piece)) for piece in link.pieces)
    name = "edge" + ("" if link.first else " gave") + ("" if lit else " dim")
    return f'<path class="{name}" data-from="{link.parent}" data-to="{link.child}" d="M{point(link.start)} {pieces}"/>'


def _svg_card(card: Card, focus: int | None, lit: bool) -> str:
    member, (x, y, width, height) = card.member, card.box
    names = (
        "card" + (" focus" if member.id == focus else "") + (" failed" if card.colour is None else "") + ("" if lit else " dim")
    )
    hint = html.escape(f"#{member.id} {member.op} {fitness_of(member)}: {member.text}")
    head = f'<g class="{names}" data-id="{member.id}" transform="translate({x:.1f} {y:.1f})"><title>{hint}</title>'
    inside = _svg_lines(card, width, height) if card.lines else _svg_small(card, width, height)
    return head + inside + "</g>"


def _svg_small(card: Card, width: float, height: float) -> str:
    fill = f' style="fill:{card.colour}"' if card.colour else ""
    ink = ' style="fill:#fff"' if card.dark else ""
    return (
        f'<rect class="box" width="{width:.1f}" height="{height}" rx="4"{fill}/>'
        f'<text x="{width / 2:.1f}" y="11.5" text-anchor="middle"{ink}>{html.escape(_label(card))}</text>'
    )


def _label(card: Card) -> str:
    value = "" if card.member.fitness is None else f" {card.member.fitness:.4g}"
    star = "★ " if card.marks.startswith("★") else ""
    return f"{star}#{card.member.id}{value} {card.marks.lstrip('★')}".rstrip()


def _svg_lines(card: Card, width: float, height: float) -> str:
    member, (tint, ink) = card.member, TINTS[kind(card.member.op)]
    op = html.escape(cut(member.op, 16))
    wide = 6.0 * len(cut(member.op, 16)) + 12
    star = f'<tspan class="star">{card.marks[:1]} </tspan>' if card.marks.startswith("★") else ""
    rows = [
        f'<rect class="box" width="{width:.1f}" height="{height:.1f}" rx="6"/>',
        f'<rect x="1" y="1" width="5" height="{height - 2:.1f}" rx="2.5" fill="{card.colour or "#dfe3ea"}"/>',
        f'<text x="13" y="18">{star}<tspan class="b">{html.escape(fitness_of(member))}</tspan>'
        f'<tspan class="n" dx="6">#{member.id} {card.marks.lstrip("★")}</tspan></text>',
        f'<rect x="{width - wide - 7:.1f}" y="7" width="{wide:.1f}" height="16" rx="8" fill="{tint}"/>',
        f'<text x="{width - wide / 2 - 7:.1f}" y="18.5" text-anchor="middle" style="fill:{ink}">{op}</text>',
    ]
    rows += [f'<text class="m" x="13" y="{37 + 13.5 * at:.1f}">{html.escape(line)}</text>' for at, line in enumerate(card.lines)]
    if card.change:
        rows.append(f'<text class="n" x="13" y="{height - 8:.1f}" style="fill:{ink}">{html.escape(card.change)}</text>')
    return "".join(rows)


def to_html(picture: Picture, title: str, events: Sequence[dict], members: Mapping[int, Member]) -> str:
    """One page: the picture to be moved and zoomed, details of a candidate, its line as a list. It asks no network for anything."""
    page = _PAGE.read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    proposed, same = (sum(row[i] for row in duplicates(events).values()) for i in (0, 1))
    return (
        jinja2.Environment(autoescape=True)
        .from_string(page)
        .render(
            title=title,
            size=(round(picture.width), round(picture.height)),
            small=picture.small,
            style=_STYLE,
            drawing=_drawing(picture),
            data=_safe_json({"focus": picture.focus, "members": [_details(c.member, members) for c in picture.cards]}),
            allowed=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            shown=len(picture.cards),
            count=len(members),
            finished=bool(events) and events[-1]["event"] == "end",
            proposed=proposed,
            merged=same,
            copies=sum(m.copy_of is not None for m in members.values()),
            founders=sum(not c.member.parents for c in picture.cards),
            kinds=[(name, *tint) for name, tint in TINTS.items()],
            scale=[blend(step / 10) for step in range(11)],
        )
    )


def _details(member: Member, members: Mapping[int, Member]) -> dict:
    """What the page shows of a candidate, as plain data."""
    rows = lambda found: [(e.where, e.before, e.after, e.source) for e in found]  # noqa: E731
    told: dict[str, object] = {
        "id": member.id,
        "generation": member.generation,
        "op": member.op,
        "kind": kind(member.op),
        "parents": member.parents,
        "text": member.text,
        "status": member.status,
        "fitness": fitness_of(member),
        "reason": member.reason,
        "copyOf": member.copy_of,
        "changes": rows(changes(member, members)),
        "tuned": rows(tuning(member)),
        "before": member.before,
        "figures": [(name, f"{value:,.0f}" if value == int(value) else f"{value:.6g}") for name, value in member.figures.items()],
        "copies": [other.id for other in members.values() if other.copy_of == member.id],
    }
    return told


def _safe_json(value: object) -> str:
    """JSON that may stand in a page: nothing in it can end a script."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def to_png(picture: Picture, title: str) -> bytes:
    """The same picture by matplotlib."""
    from matplotlib.figure import Figure

    width, height = picture.width, picture.height + 30
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(picture.height, -30))
    axes.axis("off")
    _paint_columns(axes, picture, title)
    _paint_links(axes, picture)
    _paint_cards(axes, picture)
    file = io.BytesIO()
    dots = min(150.0, 100 * PIXELS / max(width, height))
    figure.savefig(file, format="png", dpi=dots, pil_kwargs={"compress_level": 3})  # a third of the time for a tenth more bytes
    return file.getvalue()


def _write(axes, x: float, y: float, text: str, pixels: float, **more: object) -> None:
    """Text as it is: no formula is looked for in it."""
    axes.text(x, y, text, fontsize=0.72 * pixels, parse_math=False, zorder=4, **{"color": INK, **more})


def _boxes(axes, rows: list[tuple], radius: float, zorder: int) -> None:
    """(left, top, width, height, fill, edge, line width) each, with round corners."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import FancyBboxPatch

    patches = [FancyBboxPatch(row[:2], *row[2:4], boxstyle=f"round,pad=0,rounding_size={radius}") for row in rows]
    fills, edges, widths = zip(*(row[4:] for row in rows), strict=True)
    axes.add_collection(PatchCollection(patches, facecolors=fills, edgecolors=edges, linewidths=widths, zorder=zorder))


def _paint_columns(axes, picture: Picture, title: str) -> None:
    _write(axes, 12, -10, title, 12, weight="bold")
    _boxes(axes, [(x - 8, 0, w + 16, picture.height, BAND, "none", 0) for x, w, *_ in picture.columns[::2]], 8, 0)
    for x, width, head, note in picture.columns:
        _write(axes, x + width / 2, 18, head, 12, ha="center", weight="bold")
        _write(axes, x + width / 2, 33, note, 10, ha="center", color=MUTED)


def _paint_links(axes, picture: Picture) -> None:
    from matplotlib.collections import PathCollection

    for first, colour, dashes in ((True, "#8a94a6", "-"), (False, "#8657c8", (0, (5, 3)))):
        links = [link for link in picture.links if link.first == first]
        if links:  # which a collection must not be without
            edges = [colour if link.child in picture.lit else colour + "40" for link in links]
            look = {"facecolors": "none", "edgecolors": edges, "linestyles": [dashes], "linewidths": 1.2}
            axes.add_collection(PathCollection([_curve(link) for link in links], zorder=1, **look))


def _curve(link: Link):
    from matplotlib.path import Path as Curve

    codes = [code for piece in link.pieces for code in ([Curve.CURVE4] * 3 if len(piece) == 3 else [Curve.LINETO])]
    return Curve([link.start, *(point for piece in link.pieces for point in piece)], [Curve.MOVETO, *codes])


def _paint_cards(axes, picture: Picture) -> None:
    frames = {card.member.id: (RED, 2) if card.member.id == picture.focus else (RULE, 0.8) for card in picture.cards}
    fills = [_fill(card, picture) for card in picture.cards]
    _boxes(axes, [(*c.box, fill, *frames[c.member.id]) for c, fill in zip(picture.cards, fills, strict=True)], 4, 2)
    if picture.small:
        for card in picture.cards:
            x, y, width, _ = card.box
            ink = FAINT if card.member.id not in picture.lit else "white" if card.dark else INK
            _write(axes, x + width / 2, y + 11, _label(card), 10, ha="center", color=ink)
        return
    _boxes(axes, [(c.box[0] + 1, c.box[1] + 1, 5, c.box[3] - 2, c.colour or "#dfe3ea", "none", 0) for c in picture.cards], 2.4, 3)
    for card in picture.cards:
        _paint_words(axes, card, card.member.id in picture.lit)


def _fill(card: Card, picture: Picture) -> str:
    if not picture.small:
        return "white"
    return card.colour + ("" if card.member.id in picture.lit else "48") if card.colour else "#fbfbfc"


def _paint_words(axes, card: Card, lit: bool) -> None:
    (x, y, width, height), member, ink = card.box, card.member, TINTS[kind(card.member.op)][1]
    plain, ink = (INK, ink) if lit else (FAINT, FAINT)
    star = "★" if card.marks.startswith("★") else ""
    _write(
        axes,
        x + 13,
        y + 18,
        f"{star}{fitness_of(member)}  #{member.id} {card.marks.lstrip('★')}",
        11.5,
        weight="bold",
        color=plain,
    )
    _write(axes, x + width - 10, y + 18, cut(member.op, 16), 10.5, ha="right", color=ink)
    for at, line in enumerate(card.lines):
        _write(axes, x + 13, y + 37 + 13.5 * at, line, SIZE - 0.6, family="monospace", color=plain)  # hinting widens letters
    _write(axes, x + 13, y + height - 8, card.change, 9.5, color=ink)
