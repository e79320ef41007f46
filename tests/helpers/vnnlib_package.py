"""What the package vnnlib reads."""

import re

import pytest

from certtrain.properties.cases import Property


def assert_package_agrees(text: str, expected: Property) -> None:
    """The vnnlib package reads version 2.0 alone: declarations and indices are respelled, all else is as written."""
    vnnlib, compat = pytest.importorskip("vnnlib"), pytest.importorskip("vnnlib.compat")
    inputs, outputs = len(expected.cases[0].lower), expected.cases[0].functions.shape[1]
    head = f"(vnnlib-version <2.0>)\n(declare-network f (declare-input X Real [{inputs}]) "
    text = re.sub(r"\(declare-const .*\)\n", "", text)
    text = head + f"(declare-output Y Real [{outputs}]))\n" + re.sub(r"([XY])_(\d+)", r"\1[\2]", text)
    (case,) = compat.transform(vnnlib.parse_query_string(text))
    lower, upper = zip(*case.input_box, strict=True)
    assert list(lower) == expected.cases[0].lower.tolist()
    assert list(upper) == expected.cases[0].upper.tolist()
    for polytope, wanted in zip(case.output_constraints, expected.cases, strict=True):
        assert polytope.coeff_matrix == wanted.functions.tolist()
        assert polytope.rhs == [0.0]
