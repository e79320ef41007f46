"""The colours of the terminal, of pages and of pictures, by what they stand for, and the order of ReLU states."""

from typing import NamedTuple


class Colour(NamedTuple):
    """A colour on light and on dark pages, as #rrggbb, and the terminal's colour in its place.

    "default" is the colour of text in the terminal, for colours that are not used there.
    """

    light: str
    dark: str
    terminal: str = "default"


PALETTE = {
    "paper": Colour("#ffffff", "#16181c"),
    "ink": Colour("#1c1e21", "#e4e6ea"),
    "muted": Colour("#61666d", "#a0a6b0", "bright_black"),
    "grid": Colour("#dcdfe4", "#33373f"),
    "shade": Colour("#eef0f3", "#22262d"),
    "total": Colour("#b0b5bd", "#5f6570"),
    "natural": Colour("#2f6fc4", "#6aa5f0", "bright_blue"),
    "certified": Colour("#23894c", "#4cc27c", "green"),
    "open": Colour("#d9a521", "#e3b53d", "yellow"),
    "falsified": Colour("#cc5a2b", "#e8794a", "red"),
    "misclassified": Colour("#9096a0", "#767c87"),
    "active": Colour("#2a9d57", "#45b873", "green"),
    "unstable": Colour("#e9b93c", "#e9b93c", "yellow"),
    "inactive": Colour("#b5b9c0", "#5d636d", "bright_black"),
    "dead": Colour("#7a4646", "#c08080"),
    "tightness": Colour("#8a4fbf", "#b98be6"),
    "balance": Colour("#c46a1b", "#ee9a50"),
}

STATES = ("active", "unstable", "inactive")
"""The states of a ReLU in the order in which bars and stacks show them. Each is the name of its colour."""

SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#444444")
"""Colours for lines without one in the palette; colour-blind readers can distinguish them (Okabe and Ito 2008)."""
