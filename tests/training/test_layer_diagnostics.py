"""The state of the layers in training: when it is taken, and that an explosion is noted once."""

from dataclasses import replace

import pytest

from certtrain.diagnostics.model_states import model_layer_states
from certtrain.runs.epoch import LayerState
from certtrain.training.layer_diagnostics import LayerDiagnostics
from certtrain.training.pacing import Pacing
from helpers.tiny_classifier import classifier, images

EPS = 0.05


def diagnostics(pacing: Pacing) -> LayerDiagnostics:
    return LayerDiagnostics(classifier(), images(), 7, pacing)


def test_states_are_due_until_they_are_taken():
    found = diagnostics(Pacing(diagnostics=1e9))
    assert found.due()
    found.update(EPS)
    assert not found.due()


def test_states_that_are_wanted_all_the_time_are_always_due():
    found = diagnostics(Pacing(diagnostics=0.0, diagnostics_share=1e9))
    found.update(EPS)
    assert found.due()


def test_the_states_are_those_that_stats_shows():
    found = diagnostics(Pacing())
    found.update(EPS)
    for layer, expected in zip(found.layers, model_layer_states(classifier(), images(), EPS), strict=True):
        assert (layer.name, layer.units) == (expected.name, expected.units)
        assert (layer.width, layer.unstable) == pytest.approx((expected.width, expected.unstable))


def test_an_explosion_is_new_once_and_again_after_it_was_over():
    found = diagnostics(Pacing())
    found.update(EPS)
    calm: tuple[LayerState, ...] = found.layers
    wild = tuple(replace(layer, growth=1e6, unstable=0.9) for layer in calm)
    sentences = []
    for found.layers in (calm, wild, wild, calm, wild):
        sentences.append(found.new_explosion())
    assert [sentence is not None for sentence in sentences] == [False, True, False, False, True]
    assert str(sentences[1]).startswith("bounds explode")
