"""Verification of a set: the bracket holds for every point, and contradictions fail loudly."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certtrain.attack import PGD
from certtrain.errors import CerttrainError, DataError, EpsilonError, NetworkError, SoundnessError, UnsupportedLayer
from certtrain.spec.architecture import MLP
from certtrain.verification.results import ExampleResult
from certtrain.verification.verify import Report, check_fit, network_of, verify
from helpers.tiny_classifier import classifier, images, mostly_right

EPS = 0.04


def verified(eps: float = EPS, **options: Any) -> tuple[Report, list[ExampleResult]]:
    points: list[ExampleResult] = []
    asked = {"attack": PGD(steps=10), "method": "ibp"} | options
    report = verify(*mostly_right(), eps, on_examples=points.extend, **asked)
    return report, points


def test_every_verdict_occurs_and_all_are_counted():
    report, points = verified()
    assert [point.index for point in points] == list(range(100))
    assert report.misclassified == 20
    for verdict in ("certified", "open", "falsified", "misclassified"):
        assert sum(point.verdict == verdict for point in points) == getattr(report, verdict) > 0


@pytest.mark.parametrize("eps", [0.0, 0.01, EPS, 0.2, 1.0])
def test_the_bracket_is_in_order_and_adds_up(eps: float):
    report, _ = verified(eps)
    assert report.certified + report.open + report.falsified + report.misclassified == report.examples == 100
    assert 0 <= report.certified_accuracy <= report.attacked_accuracy <= report.natural_accuracy == 0.8


def test_the_report_as_plain_values():
    report, _ = verified()
    found = report.to_dict()
    assert found["natural_error"] == 0.2
    assert found["verified_error"] == (100 - report.certified) / 100
    assert found["attacked_accuracy"] == (report.certified + report.open) / 100
    assert (found["dataset"], found["split"], found["eps"], found["method"]) == ("folder", "test", EPS, "ibp")
    assert found["attack"] == {"name": "pgd", "steps": 10, "restarts": 1, "seed": 0, "targets": 0}
    assert json.loads(json.dumps(found, allow_nan=False))["assumptions"] == list(report.assumptions)


def test_no_share_has_a_rounding_error_of_its_own():
    report, _ = verified()
    for count in range(361):
        counts = {"examples": 360, "misclassified": 360 - count, "certified": count, "open": 0, "falsified": 0}
        found = replace(report, **counts).to_dict()
        assert found["natural_accuracy"] == found["certified_accuracy"] == count / 360
        assert found["natural_error"] == found["verified_error"] == (360 - count) / 360


def test_without_eps_all_that_is_correct_is_certified():
    report, _ = verified(0.0)
    assert (report.certified, report.open, report.falsified) == (80, 0, 0)


def test_margins_belong_to_their_verdicts():
    _, points = verified()
    signs = {"certified": True, "open": False, "falsified": False}  # of a misclassified point no margin is bounded
    assert all(point.verdict in signs for point in points if point.margin is not None)
    assert all((point.margin > 0) == signs[point.verdict] for point in points if point.verdict in signs)


def test_the_size_of_the_batches_does_not_change_certificates():
    whole, parts = verified(batch_size=200)[1], verified(batch_size=7)[1]
    assert [p.index for p in whole] == [p.index for p in parts]
    assert [p.verdict == "certified" for p in whole] == [p.verdict == "certified" for p in parts]
    assert [p.margin for p in whole] == pytest.approx([p.margin for p in parts])


def test_points_are_reported_batch_by_batch():
    sizes: list[int] = []
    verify(
        *mostly_right(25),
        EPS,
        attack=PGD(steps=1),
        method="ibp",
        batch_size=10,
        on_examples=lambda points: sizes.append(len(points)),
    )
    assert sizes == [10, 10, 5]


def test_a_certifier_that_lies_is_found_out(monkeypatch: pytest.MonkeyPatch):
    def everything(margins: Tensor, labels: Tensor) -> Tensor:
        return torch.ones_like(labels, dtype=torch.bool)

    monkeypatch.setattr("certtrain.verification.certificate.certified_examples", everything)
    with pytest.raises(SoundnessError, match=r"example \d+ is certified with margin -.*do not trust"):
        verified(0.2)


def test_a_network_that_is_not_finite_has_no_accuracy():
    model, data = mostly_right()
    with torch.no_grad():
        model.head.bias[0] = torch.nan
    points: list[ExampleResult] = []
    report = verify(model, data, EPS, attack=PGD(steps=1), method="ibp", on_examples=points.extend)
    assert (report.certified_accuracy, report.attacked_accuracy, report.natural_accuracy) == (0, 0, 0)
    assert {point.margin for point in points} == {None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"images": torch.zeros(4, 3, 2, 2, dtype=torch.uint8), "labels": torch.zeros(4, dtype=torch.long)},
            r"images of shape \(3, 2, 2\) .* but the model takes \(1, 2, 2\)",
        ),
        ({"class_names": ("cat", "dog", "owl", "ape")}, "has 4 classes .* but the model has 3"),
        ({"class_names": ("dog", "cat", "owl")}, "other classes .* number 0 is 'dog' there, and 'cat' in"),
        ({"class_names": ("cat", "dog", "ape")}, "number 2 is 'ape' there, and 'owl' in the model; both need the same"),
    ],
)
def test_images_that_do_not_fit_the_model_are_an_error(change: dict, message: str):
    with pytest.raises(DataError, match=message):
        check_fit(classifier(), replace(images(), **change))
    with pytest.raises(DataError, match=message):
        verify(classifier(), replace(images(), **change), EPS, attack=PGD())


@pytest.mark.parametrize(
    ("model", "data", "error", "message"),
    [
        (
            nn.Linear(4, 3),
            images(),
            NetworkError,
            r"the model is a torch\..*Linear; verify takes a Classifier, as load_model gives",
        ),
        (
            classifier(),
            images().images.numpy(),
            DataError,
            r"the images are a numpy\.ndarray; .*takes a certtrain\.data\.ImageSet",
        ),
        (classifier(), images().images, DataError, r"the images are a torch\.Tensor"),
        (classifier().double(), images(), NetworkError, r"weights are torch\.float64, .*; call model\.float\(\)"),
    ],
)
def test_what_verify_takes_is_said(model: Any, data: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        verify(model, data, EPS, attack=None)


def test_a_label_outside_the_classes_is_an_error():
    with pytest.raises(DataError, match="label 3 of example 1 is outside the 3 classes"):
        replace(images(2), labels=torch.tensor([0, 3]))


@pytest.mark.parametrize("eps", [-0.1, 2.0])
def test_a_wrong_eps_is_an_error(eps: float):
    with pytest.raises(EpsilonError):
        verified(eps)


def test_the_folded_network_is_verified_as_export_writes_it():
    model, data = classifier(seed=1, architecture=MLP(name="mlp", hidden=(8,), batch_norm=True)), images(100)
    saved, folded = (verify(model, data, EPS, attack=PGD(steps=5), network=network) for network in ("saved", "folded"))
    assert (saved.network, folded.network) == ("saved", "folded")
    assert saved.certified == pytest.approx(folded.certified, abs=1)
    assert not any(isinstance(layer, nn.BatchNorm1d) for layer in network_of(model, "folded").modules())
    assert network_of(model, "saved") is model


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"network": "foo"}, "network is 'foo'; choose from: saved, folded"),
        ({"attack": "pgd"}, r"attack is 'pgd'; give settings, such as certtrain\.attack\.PGD\(\), or None"),
        ({"limits": 5}, r"limits is 5; give certtrain\.Limits"),
        ({"batch_size": 0}, "batch_size is 0; it must be a whole number from 1"),
        ({"batch_size": 1.5}, "batch_size is 1.5; it must be"),
    ],
)
def test_an_option_of_a_wrong_kind_is_refused_by_name(option: dict[str, Any], message: str):
    with pytest.raises(CerttrainError, match=message):
        verify(*mostly_right(3), EPS, **option)


def test_a_network_in_training_mode_is_refused_before_anything_is_claimed():
    model, data = mostly_right()
    seen: list[int] = []
    with pytest.raises(UnsupportedLayer, match="is in training mode"):
        verify(model.train(), data, EPS, attack=None, on_examples=lambda results: seen.append(len(results)))
    assert not seen


def test_the_old_name_of_a_callback_is_taken_with_a_warning():
    sizes: list[int] = []
    with pytest.warns(DeprecationWarning, match="the argument on_points of verify is now on_examples") as warned:
        verify(*mostly_right(), EPS, attack=None, method="ibp", on_points=lambda results: sizes.append(len(results)))
    assert warned[0].filename == __file__
    assert sum(sizes) == 100


def test_a_report_has_the_verdict_of_each_example_and_reads_as_a_sentence():
    model, data = mostly_right()
    report = verify(model, data, EPS, attack=PGD(steps=1), method="ibp")
    assert list(report.verdicts) == list(range(100))
    assert list(report.verdicts.values()).count("certified") == report.certified
    assert [result.index for result in report.results] == list(range(100))
    assert "results" not in report.to_dict()
    text = repr(report)
    assert text.startswith("<Report: ")
    for share in (report.natural_accuracy, report.attacked_accuracy, report.certified_accuracy):
        assert f"{100 * share:.2f}%" in text


def test_a_report_s_json_has_the_accuracies_beside_the_counts():
    names = list(verify(*mostly_right(), EPS, attack=None, method="ibp").to_dict())
    together = {
        "eps",
        "examples",
        "natural_accuracy",
        "attacked_accuracy",
        "certified_accuracy",
        "verified_error",
        "certified",
    }
    assert together <= set(names[:12])
