"""Colours by what they stand for, the same in a terminal, on a page and in a picture, and the ReLU states' order."""

from typing import NamedTuple


class Colour(NamedTuple):
    """On light and on dark paper as #rrggbb, and of a terminal's own colours the one that stands for it.

    "default" is the terminal's text: such a colour is not drawn there.
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
"""The states of a ReLU in the order in which bars and stacks show them; each has a colour of its name."""

SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#444444")
"""For lines that stand for nothing in the palette; colour-blind readers can distinguish them (Okabe and Ito 2008)."""
