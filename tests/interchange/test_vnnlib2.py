"""VNN-LIB 2.0, by the package of its authors: the same property as in version 1.0, or a refusal."""

import re
import sys
from types import ModuleType

import pytest
import torch

from certtrain.competition import answers
from certtrain.errors import MissingExtra, PropertyError
from certtrain.interchange.vnnlib import parse_property
from certtrain.properties.cases import Case, Property, Variable
from certtrain.properties.decide import Decision, decide

pytest.importorskip("vnnlib", reason='VNN-LIB 2.0 is read by a package: pip install "certtrain[vnnlib]"')

HEAD = "(vnnlib-version <2.0>)\n(declare-network f\n (declare-input X float32 [1,2])\n (declare-output Y real [3]))\n"
OLD = "".join(f"(declare-const {name} Real)\n" for name in ("X_0", "X_1", "Y_0", "Y_1", "Y_2"))
BOX = "(assert (and (<= X_0 0.5) (>= X_0 -0.25) (< X_1 2.0) (>= X_1 0.25)))\n"


def both(text: str) -> tuple[Property, Property]:
    """What the same text asserts in both versions."""
    new = re.sub(r"Y_(\d)", r"Y[\1]", re.sub(r"X_(\d)", r"X[0,\1]", text))
    return parse_property(OLD + BOX + text), parse_property(HEAD + re.sub(r"X_(\d)", r"X[0,\1]", BOX) + new)


def parts(case: Case) -> list[object]:
    strict = None if case.strict is None else [part.tolist() for part in case.strict]
    return [*(part.tolist() for part in (case.lower, case.upper, case.functions, case.offsets)), strict]


@pytest.mark.parametrize(
    "text",
    [
        "(assert (<= Y_0 Y_1))",
        "(assert (or (and (>= Y_0 Y_1) (<= (+ (* 2.0 Y_2) (- Y_0) -1.5) 3.0)) (>= (- Y_1 Y_2 (* Y_0 0.5)) 10.0)))",
        "(assert (or (< Y_0 (+ Y_1 1.0)) (> Y_2 -0.125)))",
        "(assert (and (or (<= X_0 0.1) (and (>= X_0 0.2) (<= X_0 0.0))) (<= Y_0 0.0)))",
        "(assert (> Y_0 0.1000000000000000055511151231257827021181583404541015625))",
    ],
)
def test_both_versions_say_the_same(text: str) -> None:
    old, new = both(text)
    assert (new.inputs, new.outputs) == (old.inputs, old.outputs) == (2, 3)
    assert [parts(case) for case in new.cases] == [parts(case) for case in old.cases]
    assert new.variables == (Variable("X", "float32", (1, 2)), Variable("Y", "real", (3,)))
    assert old.variables is None


@pytest.mark.parametrize("value", ["(* {300} {300})", "(+ 9{307} 9{307})"])
def test_numbers_that_are_too_large_are_refused(value: str) -> None:
    value = re.sub(r"(\d?)\{(\d+)\}", lambda found: (found[1] or "1") + "0" * int(found[2]) + ".0", value)
    with pytest.raises(PropertyError, match="too large"):
        parse_property(HEAD + re.sub(r"X_(\d)", r"X[0,\1]", BOX) + f"(assert (<= Y[0] {value}))")


def test_numbers_that_are_too_small_are_refused_and_zero_is_not() -> None:
    value, box = "0." + "0" * 399 + "1", re.sub(r"X_(\d)", r"X[0,\1]", BOX)
    with pytest.raises(PropertyError, match=r"too small for a number other than zero|stod"):  # or by the package itself
        parse_property(HEAD + box + f"(assert (<= (+ Y[1] (* {value} Y[0])) 0.0))")
    assert parse_property(HEAD + box + f"(assert (<= Y[0] 0.{'0' * 399}))").cases[0].offsets.tolist() == [0.0]


def test_sums_are_exact() -> None:
    many = "1" + "0" * 16 + ".0"
    (case,) = both(f"(assert (<= (+ Y_0 {many}) (+ {many} 1.0)))")[1].cases
    assert case.offsets.tolist() == [-1.0]


def test_equations_and_their_negations_are_read() -> None:
    bounds = "(assert (and (== X[0,0] 0.5) (<= X[0,1] 1.0) (>= X[0,1] 0.0)))"
    below, above = parse_property(HEAD + bounds + "(assert (!= Y[0] 3.0))").cases
    assert (below.lower[0], below.upper[0]) == (0.5, 0.5)
    assert [
        case.violated_by(torch.tensor([[3.0, 0, 0], [2, 0, 0], [4, 0, 0]])).tolist() for case in (below, above)
    ] == [
        [False, True, False],
        [False, False, True],
    ]


def test_a_number_is_that_of_the_order_in_memory() -> None:
    head = "(vnnlib-version <2.0>)(declare-network f (declare-input image Real [2,3,2])(declare-output Y Real [1,2]))"
    numbers = [f"image[{i},{j},{k}]" for i in range(2) for j in range(3) for k in range(2)]
    text = "".join(f"(assert (and (>= {name} {place}.0) (<= {name} {place}.5)))" for place, name in enumerate(numbers))
    asked = parse_property(head + text + "(assert (<= Y[0,1] 7.0))")
    (case,) = asked.cases
    assert case.lower.tolist() == list(range(12))
    assert case.functions.tolist() == [[0.0, 1.0]]


NETWORK = "(declare-network f (declare-input X float32 [2]) (declare-output Y float32 [1]))"
REFUSED = {
    f"{NETWORK}{NETWORK.replace(' f ', ' g ').replace('X', 'V').replace('Y', 'W')}": "about 2 networks",
    "(declare-network f (declare-input X float32 [2]) (declare-input V float32 [2]) (declare-output Y float32 [1]))": (
        "its network has 2 inputs"
    ),
    "(declare-network f (declare-input X float32 [2]) (declare-output Y float32 [1]) (declare-output V float32 [1]))": (
        "its network has 2 outputs"
    ),
    "(declare-network f (declare-input X int8 [2]) (declare-output Y float32 [1]))": (
        "'X' is of type int8; float32, float64, real are read"
    ),
    "(declare-network f (declare-input X float [2]) (declare-output Y float32 [1]))": ("'X' is of type float;"),
    f"{NETWORK}(assert (<= X[2] 0.0))": "line 2: Index out of bounds",
    f"{NETWORK}(assert (<= Z[0] 0.0))": "line 2",
    f"{NETWORK}(assert (<= Y[0] (* X[0] X[1])))": "a product of two variables is not linear",
    f"{NETWORK}(assert (<= Y[0] X[1]))": "between one input and a number",
    f"{NETWORK}(assert (<= Y[0] 1.0)": "VNN-LIB 2.0: Parse error",
    f"{NETWORK}(assert (<= Y[0] 0.5))": "X_0 has no finite lower and upper bound",
    f"{NETWORK}(assert {'(and ' * 200}(<= Y[0] 1.0){')' * 201}": "more than 100 nested brackets",
    f"{NETWORK}(assert (<= X[99999999999999999999] 0.0))": "VNN-LIB 2.0: ",
}


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_decided_is_refused(text: str) -> None:
    head = "(vnnlib-version <2.0>)\n"
    more = "(assert (<= Y[0] 0.0))" if "assert" not in text else ""
    with pytest.raises(PropertyError, match=re.escape(REFUSED[text])):
        parse_property(f"{head}{text}{more}")


def test_without_the_package_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vnnlib", None)
    with pytest.raises(MissingExtra, match=r'pip install "certtrain\[vnnlib\]"'):
        parse_property(f"{HEAD}(assert (<= Y[0] 0.0))")
    monkeypatch.setitem(sys.modules, "vnnlib", ModuleType("vnnlib"))
    with pytest.raises(MissingExtra, match=r'too old; .*pip install "certtrain\[vnnlib\]"'):
        parse_property(f"{HEAD}(assert (<= Y[0] 0.0))")


def test_a_counterexample_names_the_tensors_of_the_file() -> None:
    _, asked = both("(assert (>= Y_0 0.0))")
    network = torch.nn.Linear(2, 3)
    with torch.no_grad():
        network.weight.fill_(1.0)
        network.bias.fill_(0.5)
    found = decide(network.eval(), (2,), asked)
    assert found.counterexample is not None
    assert found.outputs is not None
    text = answers.counterexample(found, asked.variables)
    assert text is not None
    lines = text.splitlines()
    assert lines[0] == "X float32 [1,2]"
    assert [float(line) for line in lines[1:3]] == found.counterexample.tolist()
    assert lines[3] == "Y real [3]"
    assert [float(line) for line in lines[4:]] == found.outputs.tolist()
    assert answers.counterexample(Decision("unknown", "complete", None, 0.0, None, None, 1.0), asked.variables) is None
