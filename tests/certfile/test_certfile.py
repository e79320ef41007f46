"""Certificate files: what they say, how they go on, and that nothing wrong in them is let through."""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from certtrain.attack import PGD
from certtrain.bounds import guard, linear
from certtrain.bounds.graph import Add
from certtrain.bounds.linear import Substitution
from certtrain.bounds.settings import VERDICT_SETTINGS
from certtrain.bounds.settings import Settings as BoundSettings
from certtrain.branching import examples
from certtrain.certfile import Writer, describe_task, read_certificates
from certtrain.certfile.lines import REWORDED, Header
from certtrain.data import ImageSet, to_unit
from certtrain.errors import CertificateError, StorageError
from certtrain.network.modelfile import Classifier, read_model, write_model
from certtrain.spec.epsilon import exact_eps, parse_eps
from certtrain.spec.layers import Graph
from certtrain.verification.certificate import Certifier
from certtrain.verification.methods import assumptions_of
from certtrain.verification.verify import verify
from helpers import tiny_classifier
from helpers.certificate_files import SHAPE, Case, Lines, lines_of, put
from helpers.tiny_classifier import mostly_right

EPS, ATTACK = 0.06, PGD(steps=5)
ROOTS_ONLY = replace(VERDICT_SETTINGS, domains=1)  # complete verification splits nothing, and leaves points open


def write(case: Case, **asked: Any) -> None:
    options: dict[str, Any] = {"method": "auto", "network": "saved", "arithmetic": "float32", "batch_size": 40}
    options |= {"bounds": ROOTS_ONLY} | asked
    header = describe_task(case.model_file, case.model, case.images, eps=EPS, attack=ATTACK.to_dict(), **options)
    writer = Writer.resume if case.file.exists() else Writer
    to = writer(case.file, header, case.images)
    known = list(to.results.values())
    verify(case.model, case.images, EPS, attack=ATTACK, known=known, on_examples=to.add, **options)
    to.seal()


@pytest.fixture(scope="module", autouse=True)
def no_splits_of_inputs() -> Iterator[None]:
    """`ROOTS_ONLY` limits the splits of neurons."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(examples, "FEW_INPUTS", 0)
        yield


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Certificates of a small model, written in one go."""
    folder = tmp_path_factory.mktemp("certificates")
    model, images = mostly_right()
    write_model(folder / "model.safetensors", model, model.metadata)
    case = Case(folder / "model.safetensors", read_model(folder / "model.safetensors"), images, folder / "c.jsonl")
    write(case)
    return case


@pytest.fixture
def case(original: Case, tmp_path: Path) -> Case:
    """The same, in a file that may be spoilt."""
    (tmp_path / "c.jsonl").write_bytes(original.file.read_bytes())
    return original._replace(file=tmp_path / "c.jsonl")


def first(lines: Lines, verdict: str, **fields: Any) -> dict[str, Any]:
    """The first record of that verdict and with those fields."""
    found = [line for line in lines if line.get("verdict") == verdict]
    return next(line for line in found if all(line[name] == value for name, value in fields.items()))


# --- what is in it ---------------------------------------------------------------------------------------


def test_the_header_says_of_what_the_file_speaks(case: Case):
    header, *records, seal = lines_of(case)
    assert header["model"]["file"] == hashlib.sha256(case.model_file.read_bytes()).hexdigest()
    assert header["data"] == {
        "name": "folder",
        "split": "test",
        "examples": 100,
        "sha256": case.images.fingerprint(),
    }
    assert header["eps"] == {"text": "0.06", "value": 0.06}
    assert (header["method"], header["arithmetic"], header["network"]) == ("auto", "float32", "saved")
    assert header["assumptions"] == list(Certifier(case.model, "ibp").assumptions)
    assert header["attack"] == {"name": "pgd", "steps": 5, "restarts": 1, "seed": 0, "targets": 0}
    assert {"certtrain", "torch"} <= header["versions"].keys()
    assert (header["inputs"], header["batch_size"], header["format"]) == ([0, 1], 40, 1)
    assert {record["index"] for record in records} == set(range(100))
    last = {record["index"]: record["verdict"] for record in records}
    assert seal["counts"] == {name: list(last.values()).count(name) for name in seal["counts"]}
    assert all(count > 0 for count in seal["counts"].values())


def test_each_example_has_a_hash_of_its_own(case: Case):
    record = lines_of(case)[8]
    pixels = case.images.images[record["index"]].numpy().tobytes()
    label = int(case.images.labels[record["index"]]).to_bytes(8, "little")
    assert record["sha256"] == hashlib.sha256(pixels + label).hexdigest()


def test_a_counterexample_can_be_read_without_certtrain(case: Case):
    record = first(lines_of(case), "falsified")
    found = np.frombuffer(base64.b64decode(record["counterexample"]), "<f4").reshape(SHAPE)
    x = case.images.images[record["index"]].numpy().astype("f4") / np.float32(255)
    assert np.abs(found.astype("f8") - x.astype("f8")).max() <= EPS
    with torch.no_grad():
        assert case.model(torch.tensor(found)[None]).argmax().item() != record["label"]


@pytest.mark.parametrize("eps", [8 / 255, 0.1, 1 / 3, 0.123456789, 2 / 255, 1e-7])
def test_a_radius_is_written_so_that_it_is_read_as_the_same_number(eps: float):
    assert parse_eps(exact_eps(eps)) == eps


def test_a_radius_is_written_as_people_write_it():
    assert [exact_eps(eps) for eps in (8 / 255, 0.1)] == ["8/255", "0.1"]


# --- checked ---------------------------------------------------------------------------------------------


def test_what_was_written_holds(case: Case):
    outcome = case.check()
    assert (outcome.checked, outcome.examples, outcome.partial) == (100, 100, False)
    assert outcome.counts == lines_of(case)[-1]["counts"]
    assert json.loads(json.dumps(outcome.to_dict(), allow_nan=False))["eps"] == EPS


def test_the_progress_of_a_check_counts_each_record_once(case: Case):
    seen: list[tuple[str, int, int]] = []
    case.check(on_progress=lambda what, done, total: seen.append((what, done, total)))
    steps, done, totals = zip(*seen, strict=True)
    assert set(totals) == {100}
    assert list(done) == sorted(done)
    assert (done[0], done[-1]) == (0, 100)
    assert steps[0] == "inference"
    assert set(steps) >= {"inference", "ibp"}
    assert done[steps.index("ibp")] == 100 - lines_of(case)[-1]["counts"]["certified"]


def test_a_part_is_checked_as_a_part(case: Case):
    outcome = case.check(limit=30)
    assert (outcome.checked, outcome.partial, sum(outcome.counts.values())) == (30, True, 30)


@pytest.mark.parametrize(
    "asked",
    [
        {"network": "folded"},
        {"method": "ibp"},
        {"method": "crown-ibp", "batch_size": 7},
        {"arithmetic": "real"},
        {"arithmetic": "bf16"},
        {"arithmetic": "bf16", "bounds": VERDICT_SETTINGS},
        {"method": "complete", "bounds": VERDICT_SETTINGS},
    ],
)
def test_other_tasks_hold_as_well(original: Case, tmp_path: Path, asked: dict[str, Any]):
    case = original._replace(file=tmp_path / "other.jsonl")
    write(case, **asked)
    assert case.check().checked == 100
    header = lines_of(case)[0]
    assert all(header[name] == value for name, value in asked.items() if name != "bounds")


def stretched() -> tuple[Classifier, ImageSet]:
    """Images to which a convolution's two channels are added, with the classes that the network gives them."""
    layers = [
        {"name": "conv", "type": "Conv2d", "in_channels": 1, "out_channels": 2, "kernel_size": 1},
        {"name": "sum", "type": "Add", "inputs": ["conv", "input"]},
        {"name": "flat", "type": "Flatten"},
        {"name": "head", "type": "Linear", "in_features": 8, "out_features": 3},
    ]
    model = tiny_classifier.classifier(architecture=Graph(name="graph", layers=layers))
    images = tiny_classifier.images(60)
    with torch.no_grad():
        labels = model(to_unit(images.images)).argmax(1)
    return model, replace(images, labels=labels)


@pytest.mark.parametrize("method", ["crown-ibp", "crown", "alpha-crown"])
def test_false_certificates_of_a_sum_that_stretches_a_side_do_not_hold(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As they were written before linear bounds were held to shapes, and proofs against inference."""
    model, images = stretched()
    write_model(tmp_path / "model.safetensors", model, model.metadata)
    case = Case(
        tmp_path / "model.safetensors", read_model(tmp_path / "model.safetensors"), images, tmp_path / "c.jsonl"
    )
    with monkeypatch.context() as patch:
        patch.setitem(linear.LINEAR_RULES, Add, lambda visit, coefficients: Substitution((coefficients, coefficients)))
        patch.setattr(linear, "check_coefficients", lambda *about: None)
        patch.setattr(guard, "_compare", lambda *about: None)
        write(case, method=method)
    with pytest.raises(CertificateError, match="does not hold: example"):
        case.check()


def test_another_model_is_refused(case: Case, tmp_path: Path):
    other = read_model(case.model_file)
    with torch.no_grad():
        other.head.bias[0] += 1e-6
    write_model(tmp_path / "other.safetensors", other, other.metadata)
    with pytest.raises(CertificateError, match=r"about another model than .*: the weights differ"):
        case._replace(model=other, model_file=tmp_path / "other.safetensors").check()


def test_the_same_weights_in_another_file_are_refused(case: Case, tmp_path: Path):
    other = read_model(case.model_file)
    write_model(tmp_path / "other.safetensors", other, other.metadata.model_copy(update={"note": "mine"}))
    with pytest.raises(CertificateError, match="are the same, but the rest of the file is not"):
        case._replace(model_file=tmp_path / "other.safetensors").check()


def test_another_architecture_is_refused(case: Case):
    case.model.metadata, kept = (
        case.model.metadata.model_copy(update={"class_names": ("a", "b", "c")}),
        case.model.metadata,
    )
    try:
        images = replace(case.images, class_names=("a", "b", "c"))
        with pytest.raises(CertificateError, match="the architecture differs"):
            case._replace(images=images).check()
    finally:
        case.model.metadata = kept


@pytest.mark.parametrize("what", ["pixel", "label", "order", "number"])
def test_other_data_are_refused(case: Case, what: str):
    images, labels = case.images.images.clone(), case.images.labels.clone()
    if what == "pixel":
        images[99, 0, 1, 1] ^= 1
    elif what == "label":
        labels[3] = (labels[3] + 1) % 3
    elif what == "order":
        images, labels = images.flip(0), labels.flip(0)
    else:
        images, labels = images[:99], labels[:99]
    with pytest.raises(CertificateError, match="about other data"):
        case._replace(images=replace(case.images, images=images, labels=labels)).check()


@pytest.mark.parametrize("number", [0, 1, 50, -1])
def test_a_changed_line_breaks_the_seal(case: Case, number: int):
    lines = lines_of(case)
    if number == 0:
        lines[0]["assumptions"] = []
    elif number == -1:
        lines[-1]["counts"]["certified"] += 1
    else:
        lines[number]["tried"]["attack"] = 1e9
    put(case, lines, seal=False)
    with pytest.raises(CertificateError, match=r"is the seal, but (does not match|its counts are not)"):
        case.check()


def open_as_certified(lines: Lines) -> None:
    record = [line for line in lines if line.get("verdict") == "open"][-1]
    record |= {"verdict": "certified", "margin": 0.1, "method": "crown-ibp"}


def misclassified_as_open(lines: Lines) -> None:
    first(lines, "misclassified").update(verdict="open", method=None)


def misclassified_as_certified(lines: Lines) -> None:
    record = first(lines, "misclassified")
    record.update(verdict="certified", method="ibp", margin=1.0, tried=record["tried"] | {"ibp": 1.0})


def certified_as_misclassified(lines: Lines) -> None:
    first(lines, "certified").update(verdict="misclassified", method="inference")


def greater_margin(lines: Lines) -> None:
    first(lines, "certified", method="ibp")["margin"] *= 1 + 3e-6


def cheaper_method(lines: Lines) -> None:
    first(lines, "certified", method="crown-ibp")["method"] = "ibp"


def another_method(lines: Lines) -> None:
    first(lines, "certified", method="ibp")["method"] = "attack"


def outside_the_box(lines: Lines) -> None:
    change_counterexample(lines, lambda pixels: (pixels + 0.2).clip(0, 1))


def outside_the_pixels(lines: Lines) -> None:
    change_counterexample(lines, lambda pixels: pixels - 1)


def rightly_classified(lines: Lines) -> None:
    record = first(lines, "falsified")
    images = mostly_right()[1].images[record["index"]].numpy()
    change_counterexample(lines, lambda pixels: images.astype("f4") / np.float32(255))


def change_counterexample(lines: Lines, change: Callable[[Any], Any]) -> None:
    record = first(lines, "falsified")
    pixels = change(np.frombuffer(base64.b64decode(record["counterexample"]), "<f4").reshape(SHAPE))
    record["counterexample"] = base64.b64encode(pixels.astype("<f4").tobytes()).decode()


def another_label(lines: Lines) -> None:
    lines[1]["label"] = (lines[1]["label"] + 1) % 3


def another_example(lines: Lines) -> None:
    lines[1]["sha256"] = lines[2]["sha256"]


def weaker_assumptions(lines: Lines) -> None:
    lines[0]["assumptions"] = lines[0]["assumptions"][1:]


def stronger_arithmetic(lines: Lines) -> None:
    lines[0]["arithmetic"] = "exact"


def unknown_method(lines: Lines) -> None:
    lines[0]["method"] = "magic"


def wider_inputs(lines: Lines) -> None:
    lines[0]["inputs"] = [-1.0, 2.0]


def greater_radius(lines: Lines) -> None:
    lines[0]["eps"] = {"text": "0.07", "value": 0.07}


def another_reading(lines: Lines) -> None:
    lines[0]["reading"] = {"kind": "onnx", "mean": [0.5], "std": [0.25], "layout": "chw"}


FORGED: dict[Callable[[Lines], None], str] = {
    open_as_certified: r"example \d+ is recorded as certified, but is open by crown-ibp here",
    misclassified_as_open: "is recorded as open, but is misclassified here",
    misclassified_as_certified: "is recorded as certified, but is misclassified here",
    certified_as_misclassified: "is recorded as misclassified, but is correctly classified here",
    greater_margin: "has the recorded margin",
    cheaper_method: "is recorded as certified, but is open by ibp here",
    another_method: "certified by 'attack', which is not part of the file's method",
    outside_the_box: "a counterexample outside its box",
    outside_the_pixels: "a counterexample outside its box",
    rightly_classified: "a counterexample that is correctly classified",
    another_label: r"example 0 has label \d, not \d",
    another_example: "example 0 is another image",
    weaker_assumptions: "assumptions that are not those of its certificates",
    stronger_arithmetic: "'exact'",
    unknown_method: "'magic' is not known",
    wider_inputs: "about inputs in",
    another_reading: "read in another way",
    greater_radius: "does not hold: .*; and .* more",
}


@pytest.mark.parametrize("forge", FORGED, ids=lambda forge: forge.__name__)
def test_a_forged_file_with_a_fitting_seal_does_not_hold(case: Case, forge: Callable[[Lines], None]):
    lines = lines_of(case)
    forge(lines)
    put(case, lines)
    with pytest.raises(Exception, match=FORGED[forge]) as caught:
        case.check()
    assert caught.type.__module__ == "certtrain.errors"


@pytest.mark.parametrize("factor", [1 + 1e-8, 0.9])
def test_a_margin_within_the_rounding_of_float64_holds_and_so_does_a_smaller_one(case: Case, factor: float):
    lines = lines_of(case)
    for line in lines:
        if line.get("verdict") == "certified":
            line["margin"] *= factor
    put(case, lines)
    assert case.check().checked == 100


# --- hostile ---------------------------------------------------------------------------------------------


def spoilt(text: str, old: str, new: str) -> bytes:
    assert old in text
    return text.replace(old, new, 1).encode()


HOSTILE: dict[str, tuple[Callable[[str], bytes], str]] = {
    "empty": (lambda text: b"", "holds no certificates"),
    "zeros": (lambda text: bytes(1000), "holds no certificates"),
    "one huge line": (lambda text: b"x" * 5_000_000, "line 1 .* is longer than"),
    "a huge record": (lambda text: spoilt(text, '"ibp":', f'"{"i" * 5_000_000}":'), "is longer than"),
    "not UTF-8": (lambda text: b"\xff\xfe" + text.encode(), "line 1 .* is not a header"),
    "not JSON": (
        lambda text: b"hello\n" + text.encode(),
        "is not a header of a certificate file: the line is not JSON: ",
    ),
    "nested without end": (lambda text: b"[" * 60_000 + b"\n", "line 1 .* is not a header"),
    "a list": (lambda text: b"[1, 2]\n", "line 1 .* is not a header"),
    "no header": (lambda text: text.partition("\n")[2].encode(), "line 1 .* is not a header"),
    "two headers": (lambda text: text.partition("\n")[0].encode() + b"\n" + text.encode(), "line 2 .* is not a record"),
    "settings beyond bounds": (
        lambda text: spoilt(text, '"neurons":256', f'"neurons":{10**30}'),
        "neurons: must be at most 2147483647, not",
    ),
    "another format": (lambda text: spoilt(text, '"format":1', '"format":2'), "format: must be 1, not 2"),
    "unknown field": (
        lambda text: spoilt(text, '"index":0', '"more":1,"index":0'),
        "line 2 .*more: there is no such field",
    ),
    "missing field": (lambda text: spoilt(text, '"label":', '"lable":'), "line 2 .*label: must be given"),
    "margin NaN": (lambda text: spoilt(text, '"margin":', '"margin":NaN,"x":'), "line 2 .*margin: .*finite"),
    "margin infinite": (lambda text: spoilt(text, '"margin":', '"margin":1e999,"x":'), "line 2 .*margin: .*finite"),
    "seconds below zero": (
        lambda text: spoilt(text, '"attack":0', '"attack":-1'),
        "attack: must be at least 0.0, not -1",
    ),
    "number as text": (lambda text: spoilt(text, '"index":0', '"index":"0"'), "index: must be a whole number, not '0'"),
    "true as a number": (
        lambda text: spoilt(text, '"index":0', '"index":true'),
        "index: must be a whole number, not True",
    ),
    "index too large": (lambda text: spoilt(text, '"index":0', '"index":100'), "is about example 100, but there are"),
    "index astronomic": (lambda text: spoilt(text, '"index":0', f'"index":{10**40}'), "is about example 1000000"),
    "index negative": (lambda text: spoilt(text, '"index":0', '"index":-1'), "index: must be at least 0, not -1"),
    "unknown verdict": (lambda text: spoilt(text, '"certified"', '"sure"'), "verdict: must be 'certified'"),
    "radii that differ": (lambda text: spoilt(text, '"text":"0.06"', '"text":"8/255"'), "are two radii"),
    "radius of nothing": (lambda text: spoilt(text, '"text":"0.06"', '"text":"8/0"'), "is not a number"),
    "no digest": (
        lambda text: spoilt(text, '"sha256":"', '"sha256":"../../'),
        "sha256: must be a hash of 64 hexadecimal digits, not",
    ),
    "split as a path": (lambda text: spoilt(text, '"split":"test"', '"split":"../test"'), "split: must be .train."),
    "many examples": (
        lambda text: spoilt(text, '"examples":100', f'"examples":{10**18}'),
        "but the file has no record of 999,999,999,999,999,900 examples, such as example 100",
    ),
    "an example is missing": (
        lambda text: _without(text, 5),
        "is the seal, but the file has no record of 1 example, such",
    ),
    "a line comes twice": (lambda text: _again(text), "again, but does not continue its earlier line"),
    "more after the seal": (lambda text: text.encode() + b"{}\n", "comes after the seal"),
    "a point without a method": (
        lambda text: spoilt(text, '"method":"ibp"', '"method":null'),
        "an example has a method",
    ),
    "cut in a line": (lambda text: text.encode()[:-200], "is not finished"),
    "cut between lines": (lambda text: text.encode()[: text.rindex('{"kind":"seal"')], "is not finished"),
    "pixels too few": (lambda text: _pixels(text, "AAAA"), "counterexample that cannot be read: it holds 3 bytes"),
    "pixels of no base": (lambda text: _pixels(text, "!"), "counterexample that cannot be read"),
    "pixels NaN": (lambda text: _pixels(text, _encoded(float("nan"))), "counterexample with NaN or infinity"),
}


def _without(text: str, index: int) -> bytes:
    return "".join(line for line in text.splitlines(True) if f'"index":{index},' not in line).encode()


def _again(text: str) -> bytes:
    lines = text.splitlines(True)
    return "".join([*lines[:3], lines[2], *lines[3:]]).encode()


def _encoded(value: float) -> str:
    return base64.b64encode(np.full(4, value, "<f4").tobytes()).decode()


def _pixels(text: str, new: str) -> bytes:
    start = text.index('"counterexample":"') + len('"counterexample":"')
    return (text[:start] + new + text[text.index('"', start) :]).encode()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_ends_in_one_clear_error(case: Case, name: str):
    spoil, message = HOSTILE[name]
    case.file.write_bytes(spoil(case.file.read_text(encoding="utf-8")))
    with pytest.raises(CertificateError, match=message) as caught:
        case.check()
    assert str(case.file) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_what_is_no_file_is_an_error(case: Case, tmp_path: Path):
    for path, message in ((tmp_path, "is not a file"), (tmp_path / "absent.jsonl", "does not exist")):
        with pytest.raises(CertificateError, match=message):
            read_certificates(path, SHAPE)


# --- resumed ---------------------------------------------------------------------------------------------


def known(case: Case) -> list[tuple[Any, ...]]:
    """The last record of each point, without seconds."""
    last = {line["index"]: line for line in lines_of(case)[1:-1]}
    fields = ("index", "label", "verdict", "margin", "method", "sha256", "counterexample")
    return [(*(line[name] for name in fields), list(line["tried"])) for _, line in sorted(last.items())]


def ends(original: Case) -> list[int]:
    """Where a killed run may have stopped: after the header, after batches, in the middle of a line."""
    text = original.file.read_bytes()
    places = [n + 1 for n, byte in enumerate(text) if byte == ord("\n")]
    return [places[0], places[40], places[65], places[100], places[100] + 50, places[-2], len(text) - 3]


@pytest.mark.parametrize("number", range(7))
def test_a_killed_run_goes_on_to_the_same_certificates(original: Case, case: Case, number: int):
    case.file.write_bytes(original.file.read_bytes()[: ends(original)[number]])
    with pytest.raises(CertificateError, match="is not finished"):
        case.check()
    write(case)
    assert known(case) == known(original)
    assert case.check().checked == 100


def test_a_finished_file_that_goes_on_stays_as_it_is(original: Case, case: Case):
    write(case)
    assert case.file.read_bytes() == original.file.read_bytes()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"method": "ibp"}, r"was written for another task: the method \(auto in the file, ibp here\)"),
        ({"batch_size": 41}, r"the batch size \(40 in the file, 41 here\)"),
        ({"network": "folded"}, r"the network \(saved or folded\) \(saved in the file, folded here\)"),
        ({"method": "ibp", "batch_size": 41}, "the method .*; the batch size"),
    ],
)
def test_a_file_about_something_else_is_not_gone_on_with(case: Case, asked: dict[str, Any], message: str):
    before = case.file.read_bytes()
    with pytest.raises(CertificateError, match=message) as caught:
        write(case, **asked)
    assert "--force to replace it" in str(caught.value)
    assert case.file.read_bytes() == before


def test_another_radius_attack_or_model_is_named(case: Case):
    options: dict[str, Any] = {"method": "auto", "network": "saved", "arithmetic": "float32", "batch_size": 40}
    header = describe_task(
        case.model_file, case.model, case.images, eps=8 / 255, attack=PGD(steps=9).to_dict(), **options
    )
    with pytest.raises(
        CertificateError, match=r"ε \(text 0.06 in the file, 8/255 here.*the attack \(steps 5 in the file, 9 here"
    ):
        Writer.resume(case.file, header, case.images)


@pytest.mark.parametrize("old", REWORDED)
def test_an_assumption_in_the_words_of_an_earlier_version_is_read_in_those_of_this_one(old: str, case: Case):
    header = Header.model_validate_json(json.dumps(lines_of(case)[0] | {"assumptions": [old, "another"]}))
    assert header.assumptions == (REWORDED[old], "another")
    network = nn.Sequential(nn.Linear(4, 2), nn.GELU()).eval()
    assert REWORDED[old] in assumptions_of(network, "milp", "real")


def test_a_file_of_an_earlier_version_without_rounding_still_holds(case: Case):
    case = case._replace(file=case.file.with_name("real.jsonl"))
    write(case, arithmetic="real", method="ibp")
    lines, (old, *_) = lines_of(case), REWORDED
    lines[0]["assumptions"][0] = old
    put(case, lines)
    assert case.check().checked == 100


def test_what_decides_a_margin_is_in_the_header_and_is_computed_with_again(case: Case):
    assert lines_of(case)[0]["bounds"] == ROOTS_ONLY.decisive_fields()
    assert "memory" not in VERDICT_SETTINGS.decisive_fields()
    asked = {"method": "crown", "network": "saved", "arithmetic": "float32", "batch_size": 40}
    about = (case.model_file, case.model, case.images)
    header = describe_task(*about, eps=EPS, attack=ATTACK.to_dict(), **asked, bounds=BoundSettings(iterations=7))
    assert header.bounds.settings(memory=5) == BoundSettings(iterations=7, memory=5)
    with pytest.raises(
        CertificateError, match=r"the settings of the bounds \(dense 0 in the file, 1024 here; iterations 50"
    ):
        Writer.resume(case.file, header, case.images)


def test_a_rate_that_no_arithmetic_holds_is_refused(case: Case):
    case = case._replace(file=case.file.with_name("rate.jsonl"))
    write(case, method="ibp")
    lines = lines_of(case)
    lines[0]["bounds"]["learning_rate"] = 1e308
    put(case, lines)
    with pytest.raises(CertificateError, match=r"learning_rate"):
        case.check()


def test_a_file_about_other_images_is_not_continued(case: Case):
    case = case._replace(file=case.file.with_name("images.jsonl"))
    write(case, method="ibp")
    lines = lines_of(case)
    lines[1]["sha256"] = "0" * 64
    put(case, lines)
    with pytest.raises(CertificateError, match=f"another image for example {lines[1]['index']} than the data"):
        write(case, method="ibp")


def test_memory_changes_neither_records_nor_their_check(case: Case):
    other = case._replace(file=case.file.with_name("other.jsonl"))
    write(other, bounds=replace(ROOTS_ONLY, memory=1))
    mine, theirs = ({r["index"]: r for r in lines_of(each)[1:-1]} for each in (case, other))
    for index, record in mine.items():
        assert (record["verdict"], record["method"]) == (theirs[index]["verdict"], theirs[index]["method"])
        if record["verdict"] != "misclassified":
            assert record["margin"] == pytest.approx(theirs[index]["margin"], rel=1e-9)
    assert case.check(memory=1).checked == 100


@pytest.fixture(scope="module")
def searched(original: Case, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Certificates by α-CROWN."""
    case = original._replace(file=tmp_path_factory.mktemp("searched") / "c.jsonl", images=original.images.take(40))
    write(case, method="alpha-crown")
    return case


@pytest.mark.parametrize(
    ("change", "holds"), [(lambda m: m / 2, True), (lambda m: m * 1.0005, True), (lambda m: m * 1.01 + 1e-3, False)]
)
def test_a_searched_margin_may_be_smaller_and_hardly_greater(
    searched: Case, tmp_path: Path, change: Callable[[float], float], holds: bool
):
    lines, case = lines_of(searched), searched._replace(file=tmp_path / "c.jsonl")
    record = first(lines, "certified", method="alpha-crown")
    record["margin"] = change(record["margin"])
    put(case, lines)
    if holds:
        assert case.check().checked == 40
    else:
        with pytest.raises(CertificateError, match=f"example {record['index']} has the recorded margin"):
            case.check()


def test_a_searched_margin_that_stopped_later_elsewhere_is_reached(
    searched: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A record's margin is what the whole search finds; the search that stops early finds less."""
    case, lines = searched._replace(file=tmp_path / "c.jsonl"), lines_of(searched)
    put(case, lines)
    whole = Certifier.proved

    def stops_sooner(self: Certifier, *given: Any) -> tuple[Tensor, Tensor]:
        proved, margin = whole(self, *given)
        return proved, margin / 2 if self.settings.early_stop else margin

    monkeypatch.setattr(Certifier, "proved", stops_sooner)
    assert case.check().checked == 40


@pytest.mark.parametrize(("name", "value"), [
    ("iterations", 10**9), ("iterations", -1), ("learning_rate", 0.0), ("decay", 2.0), ("dense", "all"), ("memory", 1)
])  # fmt: skip
def test_settings_of_bounds_that_none_has_are_refused(case: Case, name: str, value: Any):
    lines = lines_of(case)
    lines[0]["bounds"][name] = value
    put(case, lines)
    with pytest.raises(CertificateError, match=f"line 1 of .* is not a header of a certificate file: bounds.{name}"):
        case.check()


def test_a_file_that_cannot_be_written_is_an_error(case: Case, tmp_path: Path):
    with pytest.raises(StorageError, match="cannot write"):
        write(case._replace(file=tmp_path / "c.jsonl" / "below.jsonl"))


# --- examples that ran out of their time -------------------------------------------------------------------


def timed_out(case: Case) -> tuple[Lines, dict[str, Any]]:
    """The lines of a file in which the last step ran out of time for the first open example, and its line."""
    lines = lines_of(case)
    record = first(lines[-2:0:-1], "open")  # a line that no later one replaces
    record["cut"] = [list(record["tried"])[-1]]
    return lines, record


def test_steps_that_ran_out_of_time_are_kept_and_written_for_open_examples_alone(case: Case):
    assert all("cut" not in line for line in lines_of(case))  # as in files of earlier versions
    lines, record = timed_out(case)
    put(case, lines)
    contents = read_certificates(case.file, SHAPE)
    result = next(each for each in contents.results(SHAPE) if each.index == record["index"])
    assert (result.cut, result.finished(record["cut"][0])) == (tuple(record["cut"]), False)
    assert case.check().counts["open"] == lines[-1]["counts"]["open"]
    header = contents.header
    writer = Writer.resume(case.file, header, case.images)
    writer.add([replace(result, tried={**result.tried, record["cut"][0]: 99.0})])
    writer.seal()
    again = [line for line in lines_of(case)[1:-1] if line["index"] == record["index"]]
    assert [line["cut"] for line in again[-2:]] == [record["cut"]] * 2
    assert case.check().counts["open"] == lines[-1]["counts"]["open"]


def test_a_step_that_came_to_its_end_is_not_tried_again_in_a_file(case: Case):
    lines, record = timed_out(case)
    tried = list(record["tried"])
    changed = record | {"tried": record["tried"] | {tried[0]: 99.0, tried[-1]: 99.0}}
    put(case, [*lines[:-1], changed, lines[-1]])
    with pytest.raises(CertificateError, match="does not continue its earlier line"):
        case.check()


@pytest.mark.parametrize("verdict", ["open", "certified"])
def test_only_a_tried_step_of_an_open_example_can_have_run_out_of_time(case: Case, verdict: str):
    lines = lines_of(case)
    first(lines[1:-1], verdict)["cut"] = ["magic" if verdict == "open" else "ibp"]
    put(case, lines)
    with pytest.raises(CertificateError, match="ran out of its time"):
        case.check()
