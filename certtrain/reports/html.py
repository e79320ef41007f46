"""One self-contained HTML page from blocks: headings, tables, bars, pictures.

Every function gives `Html`; all other text is escaped. A page loads nothing
from anywhere, and forbids the browser to: styles and pictures are inside it.
Colours are the style sheet's variables, so that pictures follow the reader's
light or dark mode, and print is always light.
"""

import html
from collections.abc import Iterable, Sequence

from certtrain.formats import NONE, number, percent

PALETTE = {
    "paper": ("#ffffff", "#16181c"),
    "ink": ("#1c1e21", "#e4e6ea"),
    "muted": ("#61666d", "#a0a6b0"),
    "grid": ("#dcdfe4", "#33373f"),
    "shade": ("#eef0f3", "#22262d"),
    "total": ("#b0b5bd", "#5f6570"),
    "natural": ("#2f6fc4", "#6aa5f0"),
    "certified": ("#23894c", "#4cc27c"),
    "open": ("#d9a521", "#e3b53d"),
    "falsified": ("#cc5a2b", "#e8794a"),
    "misclassified": ("#9096a0", "#767c87"),
    "active": ("#2a9d57", "#45b873"),
    "unstable": ("#e9b93c", "#e9b93c"),
    "inactive": ("#b5b9c0", "#5d636d"),
    "dead": ("#7a4646", "#c08080"),
    "tightness": ("#8a4fbf", "#b98be6"),
    "balance": ("#c46a1b", "#ee9a50"),
}
"""Each colour by its name, for light and for dark paper."""


class Html(str):
    """Markup, ready to stand in a page."""

    __slots__ = ()


Cell = Html | str | float | int | None


def text(value: Cell) -> Html:
    """A value as markup: text escaped, whole numbers with separators, None and NaN as a dash."""
    match value:
        case Html():
            return value
        case None:
            return Html(NONE)
        case int():
            return Html(f"{value:,}")
        case float():
            return Html(number(value))
    return Html(html.escape(value))


# --- blocks ----------------------------------------------------------------------------------------------


def _tag(name: str, content: Iterable[str] | str, kind: str = "") -> Html:
    start = f'{name} class="{kind}"' if kind else name
    return Html(f"<{start}>{''.join(content)}</{name}>")


def heading(content: Cell, level: int = 2) -> Html:
    """A heading; the page's title is the only one of level 1."""
    return _tag(f"h{level}", text(content))


def paragraph(*parts: Cell) -> Html:
    """A paragraph of texts and markup, joined."""
    return _tag("p", map(text, parts))


def note(*parts: Cell) -> Html:
    """A paragraph that stands out."""
    return _tag("p", map(text, parts), "note")


def code(content: str) -> Html:
    """A word of a program, within a line."""
    return _tag("code", text(content))


def listing(content: str) -> Html:
    """Lines as they are, in a fixed width."""
    return _tag("pre", text(content))


def bullets(items: Iterable[Cell]) -> Html:
    """A list."""
    return _tag("ul", (_tag("li", text(item)) for item in items))


def details(summary: Cell, blocks: Iterable[Html]) -> Html:
    """Blocks that are shown when the reader asks for them."""
    return _tag("details", [_tag("summary", text(summary)), *blocks])


def table(header: Sequence[Cell], rows: Iterable[Sequence[Cell]], align: str = "") -> Html:
    """A table that scrolls sideways where it does not fit.

    `align` has a letter for each column, l or r; by default the first is left and the others are right.
    Raises ValueError if a row is not as long as the header.
    """
    kinds = ["left" if letter == "l" else "" for letter in align or "l" + "r" * (len(header) - 1)]
    head = _row("th", header, kinds)
    body = [_row("td", row, kinds) for row in rows]
    return _tag("div", _tag("table", [_tag("thead", head), _tag("tbody", body)]), "wide")


def _row(name: str, cells: Sequence[Cell], kinds: Sequence[str]) -> Html:
    return _tag("tr", (_tag(name, text(cell), kind) for cell, kind in zip(cells, kinds, strict=True)))


def facts(pairs: Iterable[tuple[Cell, Cell]]) -> Html:
    """A table of names and values."""
    rows = [_tag("tr", [_tag("th", text(name), "left"), _tag("td", text(value), "left")]) for name, value in pairs]
    return _tag("table", _tag("tbody", rows), "facts")


def tiles(values: Iterable[tuple[Cell, Cell, Cell]]) -> Html:
    """Values in large, each with its name and a remark."""
    boxes = [
        _tag("div", [_tag("b", text(value)), _tag("span", text(name)), _tag("small", text(remark))])
        for value, name, remark in values
    ]
    return _tag("div", boxes, "tiles")


def bar(parts: Iterable[tuple[str, float, str]]) -> Html:
    """One bar of (name, share of one, colour's name in PALETTE); a share above zero is never too thin to be seen."""
    parts = [part for part in parts if part[1] > 0]
    label = html.escape(", ".join(f"{name} {percent(share)}" for name, share, _ in parts))
    pieces = [f'<i class="{_known(colour)}" style="width:{100 * share:.3f}%"></i>' for _, share, colour in parts]
    return Html(f'<div class="bar" role="img" aria-label="{label}" title="{label}">{"".join(pieces)}</div>')


def legend(entries: Iterable[tuple[str, str]]) -> Html:
    """What the colours of bars and pictures mean: (name, colour's name in PALETTE)."""
    marks = [_tag("span", [f'<i class="{_known(colour)}"></i> ', text(name)]) for name, colour in entries]
    return _tag("p", marks, "legend")


def figure(svg: Html, title: Cell, caption: Cell = "") -> Html:
    """A picture, as `certtrain.reports.curves.svg` gives it, under its title, and what there is to say about it."""
    below = [_tag("small", text(caption))] if caption else []
    return _tag("figure", [_tag("figcaption", text(title)), svg, *below])


def gallery(figures: Iterable[Html]) -> Html:
    """Pictures side by side where there is room, else one below the other."""
    return _tag("div", figures, "gallery")


def _known(colour: str) -> str:
    if colour not in PALETTE:
        raise ValueError(f"{colour!r} is not a colour of the palette")
    return colour


# --- the page --------------------------------------------------------------------------------------------


def page(title: str, blocks: Iterable[Html]) -> str:
    """A whole document with `title` as its first heading."""
    body = "\n".join(blocks)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{text(title)}</title>
<style>
{_style()}</style>
</head>
<body>
<main>
{heading(title, level=1)}
{body}
</main>
</body>
</html>
"""


def _variables(which: int) -> str:
    return " ".join(f"--{name}: {colours[which]};" for name, colours in PALETTE.items())


def _style() -> str:
    backgrounds = "\n".join(f"i.{name} {{ background: var(--{name}); }}" for name in PALETTE)
    return f""":root {{ color-scheme: light; {_variables(0)} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ color-scheme: dark; {_variables(1)} }} }}
{SHEET}{backgrounds}
"""


SHEET = """* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0; overflow-wrap: anywhere; }
h1, h2, h3 { text-wrap: balance; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--grid); }
h3 { font-size: 1.05rem; margin: 1.4rem 0 .4rem; }
p, ul { margin: .5rem 0; max-width: 46rem; }
small { color: var(--muted); font-size: .85rem; line-height: 1.35; display: block; }
figcaption { font-size: .95rem; font-weight: 600; overflow-wrap: anywhere; }
code, pre { font: .9em/1.4 ui-monospace, monospace; }
pre { background: var(--shade); padding: .8rem; overflow-x: auto; }
.note { background: var(--shade); border-left: .25rem solid var(--open); padding: .5rem .8rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--grid); text-align: right; white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; }
thead th { white-space: normal; }
td.left:not(:first-child) { white-space: normal; }
th:first-child, td:first-child { padding-left: 0; }
th.left, td.left { text-align: left; }
.facts td { white-space: normal; overflow-wrap: anywhere; }
.facts th { vertical-align: top; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; margin: .8rem 0; }
.tiles div { background: var(--shade); padding: .7rem .9rem; display: flex; flex-direction: column; }
.tiles b { font-size: 1.75rem; line-height: 1.15; font-variant-numeric: tabular-nums; }
.bar { display: flex; height: 1.6rem; margin: .6rem 0; background: var(--shade); }
.bar i { min-width: 2px; }
td .bar { height: 1rem; width: 12rem; margin: .1rem 0; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .9rem; }
.legend i { display: inline-block; width: .8em; height: .8em; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1rem 0; }
figure { margin: 0; break-inside: avoid; }
main > figure { margin: 1.2rem 0; }
svg { display: block; width: 100%; height: auto; stroke-linejoin: round; }
svg text { font-family: system-ui, sans-serif; }
details { margin: .8rem 0; }
summary { cursor: pointer; font-weight: 600; }
@media print {
  main { max-width: none; padding: 0; }
  body { font-size: 11pt; }
  h2, h3 { break-after: avoid; }
  .gallery { grid-template-columns: 1fr 1fr; }
  tr, .tiles { break-inside: avoid; }
  .bar, .bar i, .legend i, .tiles div, pre, .note { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
"""
