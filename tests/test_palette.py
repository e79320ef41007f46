"""The colours: legible on light and dark paper, distinct, and known to a terminal."""

import pytest

from certtrain.palette import PALETTE, SERIES, STATES, Colour


def luminance(colour: str) -> float:
    """The relative luminance by the definition of WCAG 2.1."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    """The contrast of two colours by the definition of WCAG 2.1: from 1 to 21."""
    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def paper(colour: Colour, dark: bool) -> str:
    return colour.dark if dark else colour.light


def test_the_contrast_of_black_and_white_is_21():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_stands_out_from_the_paper(dark: bool):
    ground, shade = paper(PALETTE["paper"], dark), paper(PALETTE["shade"], dark)
    for name, least in (("ink", 7.0), ("muted", 4.5)):
        assert contrast(paper(PALETTE[name], dark), ground) > least
        assert contrast(paper(PALETTE[name], dark), shade) > least


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_lines_and_bars_stand_out_from_the_paper(dark: bool):
    for name, colour in PALETTE.items():
        if name not in ("paper", "shade", "grid"):
            assert contrast(paper(colour, dark), paper(PALETTE["paper"], dark)) > 1.7, name


def test_all_colours_differ():
    lights = [colour.light for colour in PALETTE.values()]
    assert len(set(lights)) == len(lights)  # a picture's colour leads to one variable
    assert len(set(SERIES)) == len(SERIES)


def test_a_terminal_knows_its_colours():
    from rich.color import Color

    for colour in PALETTE.values():
        assert Color.parse(colour.terminal).name == colour.terminal


def test_each_state_has_a_colour_everywhere():
    states = [PALETTE[state] for state in STATES]
    assert len({state.terminal for state in states} - {"default"}) == len(STATES)
