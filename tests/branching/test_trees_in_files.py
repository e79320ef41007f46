"""Trees in certificate files: what was written holds, and nothing that is not proved is let through."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from certtrain.attack import described
from certtrain.bounds.box import box_ends
from certtrain.bounds.settings import VERDICT_SETTINGS
from certtrain.branching.examples import margin_problem
from certtrain.certfile import Writer, describe_task
from certtrain.data import to_unit
from certtrain.errors import CertificateError
from certtrain.network.modelfile import read_model, write_model
from certtrain.spec.architecture import MLP
from certtrain.verification.complete import CompleteStep
from certtrain.verification.steps import ExampleBatch
from certtrain.verification.verify import verify
from helpers.certificate_files import Case, Lines, lines_of, put
from helpers.sampling import points_inside
from helpers.tiny_classifier import classifier, images

EPS, LARGE, FALSIFIED = 0.15, 1, 2
CHOSEN = torch.tensor([4, 12, 0])  # of the images: with a small tree, with a large one, and falsified


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("trees")
    model = classifier(seed=1, architecture=MLP(name="mlp", hidden=(12, 12), batch_norm=False))
    data = images(24)
    with torch.no_grad():
        model.head.weight *= 3
        labels = model(to_unit(data.images)).argmax(1)
    data = replace(data, images=data.images[CHOSEN], labels=labels[CHOSEN])
    write_model(folder / "model.safetensors", model, model.metadata)
    saved = read_model(folder / "model.safetensors")
    case = Case(folder / "model.safetensors", saved, data, folder / "c.jsonl")
    asked: dict[str, Any] = {"method": "complete", "network": "saved", "arithmetic": "float32", "batch_size": 10}
    header = describe_task(case.model_file, saved, data, eps=EPS, attack=described(None), **asked)
    writer = Writer(case.file, header, data)
    verify(saved, data, EPS, attack=None, on_examples=writer.add, bounds=VERDICT_SETTINGS, **asked)
    writer.seal()
    return case


@pytest.fixture
def case(original: Case, tmp_path: Path) -> Case:
    (tmp_path / "c.jsonl").write_bytes(original.file.read_bytes())
    return original._replace(file=tmp_path / "c.jsonl")


def record(lines: Lines, index: int) -> dict[str, Any]:
    """The last one of that example."""
    return [line for line in lines[1:-1] if line["index"] == index][-1]


def forged(case: Case, index: int, **fields: Any) -> Case:
    """With fields of a record replaced, and a seal that fits."""
    lines = lines_of(case)
    record(lines, index).update(fields)
    put(case, lines)
    return case


def trees(case: Case, index: int = LARGE) -> dict[str, str]:
    return dict(record(lines_of(case), index)["trees"])


def largest(case: Case) -> tuple[str, str]:
    """The class with the largest tree of the example, and the tree."""
    return max(trees(case).items(), key=lambda item: len(item[1]))


def with_tree(case: Case, change: Callable[[str], str]) -> Case:
    """With the largest tree changed."""
    other, text = largest(case)
    return forged(case, LARGE, trees=trees(case) | {other: change(text)})


@torch.no_grad()
def reached(case: Case, index: int) -> float:
    """A margin that an input in the box has: none above it can be proved."""
    x, label = to_unit(case.images.images[index]).unsqueeze(0), int(case.images.labels[index])
    logits: Tensor = case.model(points_inside(*(end[0] for end in box_ends(x, EPS)), count=20_000))
    margins = logits[:, [label]] - logits
    margins[:, label] = torch.inf
    return float(margins.min())


def test_what_was_written_holds_and_has_trees(case: Case):
    assert case.check().counts == {"certified": 2, "open": 0, "falsified": 1, "misclassified": 0}
    assert all(tree.count(".") == tree.count(":") + 1 for tree in trees(case).values())
    assert len(largest(case)[1].split(" ")) > 10
    assert 0 < record(lines_of(case), LARGE)["margin"] < reached(case, LARGE)


TEXTS: dict[str, tuple[Callable[[str], str], str]] = {
    "a leaf is lost at the end": (lambda text: text[:-2], "it ends before the tree is complete"),
    "a leaf is lost inside": (lambda text: text.replace(" . .", " .", 1), "it"),
    "a leaf too many": (lambda text: text + " .", "it continues after the tree's end"),
    "nothing": (lambda text: "", "'' is neither a neuron, like '4:17', nor a cut"),
    "no text of a tree": (lambda text: "certified", "'certified' is neither a neuron"),
    "a unit of another layer": (lambda text: "4:0 . .", "the network has no neuron 4:0"),
    "a unit of no layer": (lambda text: "77:0 . .", "the network has no neuron 77:0"),
    "a unit too many": (lambda text: "3:12 . .", "the network has no neuron 3:12"),
    "a unit far away": (lambda text: "3:999999999 . .", "the network has no neuron 3:999999999"),
    "an astronomic unit": (lambda text: f"3:{10**40} . .", "is neither a neuron"),
    "a unit of many digits": (lambda text: f"3:{'9' * 10_000} . .", "is neither a neuron"),
    "a unit twice on one way": (lambda text: "3:1 3:1 . . .", "'3:1' is split twice on one path"),
    "a deep way of units": (lambda text: " ".join(f"9:{n}" for n in range(200_000)), "it ends before"),
    "a deep tree": (lambda text: " ".join(f"9:{n} ." for n in range(200_000)) + " .", "the network has no neuron 9:0"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_tree_that_is_none_is_refused(case: Case, name: str):
    change, message = TEXTS[name]
    with pytest.raises(CertificateError, match=rf"does not hold: example {LARGE} is certified by complete, but") as all:
        with_tree(case, change).check()
    assert message in str(all.value)
    assert len(str(all.value)) < 500


def swapped(found: dict[str, str]) -> dict[str, str]:
    """One class's tree under the label's name: no class is left without one."""
    first, second = found
    label = next(str(j) for j in range(3) if str(j) not in found)
    return {label: found[first], second: found[second]}


CLASSES: dict[str, Callable[[dict[str, str]], dict[str, str]]] = {
    "for the label": swapped,
    "one too few": lambda found: dict(list(found.items())[:1]),
    "one too many": lambda found: found | {"99": "."},
    "the label too": lambda found: found | {"0": ".", "1": ".", "2": "."},
    "negative": lambda found: found | {"-1": "."},
    "astronomic": lambda found: found | {str(10**40): "."},
}


@pytest.mark.parametrize("name", CLASSES)
def test_trees_of_other_classes_are_refused(case: Case, name: str):
    changed = CLASSES[name](trees(case))
    with pytest.raises(CertificateError, match="it does not have one tree for each other class"):
        forged(case, LARGE, trees=changed).check()


def test_a_margin_above_what_an_input_has_is_refused(case: Case):
    above = reached(case, LARGE) * 1.01
    with pytest.raises(CertificateError, match=r"[\d,]+ of the leaves against class \d could not be proved here"):
        forged(case, LARGE, margin=above).check()


def test_a_margin_raised_by_a_hundredth_holds_only_if_it_is_proved(case: Case):
    """What no input has been found to break may be true; then the check has proved it, with splits of its own."""
    before = record(lines_of(case), LARGE)["margin"]
    forged(case, LARGE, margin=before * 1.01)
    if before * 1.01 * 0.999 > reached(case, LARGE):
        with pytest.raises(CertificateError, match="not proved here"):
            case.check()
    else:
        assert case.check().checked == 3


def test_a_smaller_margin_holds(case: Case):
    assert forged(case, LARGE, margin=record(lines_of(case), LARGE)["margin"] / 2).check().checked == 3


def test_a_falsified_point_is_not_certified_by_whatever_trees(case: Case):
    tried = record(lines_of(case), FALSIFIED)["tried"]
    claim = {"verdict": "certified", "method": "complete", "tried": tried, "counterexample": None, "margin": 1e-6}
    label = int(case.images.labels[FALSIFIED])
    for text in (".", " ".join(f"3:{n} ." for n in range(12)) + " ."):
        wanted = {str(j): text for j in range(3) if j != label}
        with pytest.raises(CertificateError, match=r"[\d,]+ of the leaves against class \d could not be proved here"):
            forged(case, FALSIFIED, trees=wanted, **claim).check()


def test_other_trees_of_a_true_margin_hold_as_the_check_proves_them_itself(case: Case):
    """Split by another unit, by one whose sign the box decides, or not at all: any tree's leaves are the whole box."""
    other, text = largest(case)
    stable = next(n for n, is_open in enumerate(opened(case)[:12]) if not is_open)
    unused = next(n for n, is_open in enumerate(opened(case)[:12]) if is_open and f"3:{n}" not in text.split())
    for changed in (".", f"3:{unused} {text} {text}", f"3:{stable} {text} {text}"):
        assert forged(case, LARGE, trees=trees(case) | {other: changed}).check().checked == 3


def opened(case: Case) -> list[bool]:
    """Which units' signs the box of the example with the large tree leaves open."""
    step, x = CompleteStep(case.model, "float32"), to_unit(case.images.images[[LARGE]])
    boxed = step.example(ExampleBatch([LARGE], x, case.images.labels[[LARGE]], EPS), 0)
    settings = step.prepared().settings
    return margin_problem(boxed.prefix(settings), 0, 1, 3, settings).unstable.tolist()


LINES: dict[str, tuple[int, dict[str, Any], str]] = {
    "no trees": (LARGE, {"trees": {}}, "examples certified by 'complete' have trees, and no others do"),
    "trees that are none": (LARGE, {"trees": None}, "trees: must be a section with fields"),
    "a list of trees": (LARGE, {"trees": [".", "."]}, "trees: must be a section with fields"),
    "a class that is none": (LARGE, {"trees": {"x": "."}}, "trees.x"),
    "a tree that is a number": (LARGE, {"trees": {"0": 1}}, "trees.0: must be text, not 1"),
    "trees of a falsified example": (FALSIFIED, {"trees": {"0": "."}}, "have trees, and no others do"),
    "trees of an open point": (
        LARGE,
        {"verdict": "open", "method": None, "margin": None},
        "examples certified by 'complete' have trees, and no others do",
    ),
    "trees of another method": (
        LARGE,
        {"method": "ibp", "tried": {"inference": 0.1, "ibp": 0.1, "complete": 0.1}},
        "examples certified by 'complete' have trees, and no others do",
    ),
    "a huge tree": (LARGE, {"trees": {"0": "." * 5_000_000}}, "is longer than"),
    "no margin": (LARGE, {"margin": None}, "a certified example has a margin above zero"),
    "a margin of nothing": (LARGE, {"margin": 0.0}, "a certified example has a margin above zero"),
}


@pytest.mark.parametrize("name", LINES)
def test_a_record_whose_trees_do_not_belong_there_is_refused(case: Case, name: str):
    index, fields, message = LINES[name]
    with pytest.raises(CertificateError, match=r"line \d+ of .*") as caught:
        forged(case, index, **fields).check()
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500


def test_complete_must_have_been_asked_for(case: Case):
    lines = lines_of(case)
    lines[0]["method"] = "ibp"
    put(case, lines)
    with pytest.raises(CertificateError, match="is certified by 'complete', which is not part of the file's method"):
        case.check()


def test_without_scipy_and_with_little_memory_the_file_holds_as_well(case: Case, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    assert case.check(memory=100_000).checked == 3
