"""Images to look at: in their boxes, in the order of their verdicts."""

import torch

from certtrain.attack import PGD
from certtrain.data import to_unit
from certtrain.verification.samples import SHOWN_VERDICTS, attacked_samples
from certtrain.verification.verify import verify
from helpers.tiny_classifier import mostly_right

EPS = 0.05


def test_samples_lie_in_their_boxes_and_have_the_classes_of_their_verdicts():
    model, images = mostly_right()
    report = verify(model, images, EPS, attack=PGD(steps=10), method="ibp")
    samples = attacked_samples(model, images, report.results, EPS, 3)
    verdicts = [sample.result.verdict for sample in samples]
    assert verdicts == [verdict for verdict in SHOWN_VERDICTS for _ in range(3)]
    for sample in samples:
        clean = to_unit(images.images[sample.result.index].unsqueeze(0))[0]
        assert torch.equal(sample.clean, images.images[sample.result.index])
        assert (sample.attacked - clean).abs().max() <= EPS + 1e-6
        assert 0 <= sample.attacked.min() <= sample.attacked.max() <= 1
        with torch.no_grad():
            logits = model(sample.attacked.unsqueeze(0))[0]
        assert (sample.shown_as == sample.result.label) == (sample.result.verdict != "falsified")
        if sample.result.verdict == "certified":
            assert int(logits.argmax()) == sample.result.label


def test_the_end_of_an_attack_has_a_smaller_margin_than_the_image():
    model, images = mostly_right()
    report = verify(model, images, EPS, attack=PGD(steps=10), method="ibp")
    for sample in attacked_samples(model, images, report.results, EPS, 5):
        with torch.no_grad():
            both = model(torch.stack([to_unit(sample.clean.unsqueeze(0))[0], sample.attacked]))
        label = sample.result.label
        others = both.clone()
        others[:, label] = -torch.inf
        clean, attacked = (both[:, label] - others.amax(1)).tolist()
        assert attacked < clean


def test_without_right_examples_there_is_no_sample():
    model, images = mostly_right(5)
    report = verify(model, images, EPS, attack=PGD(steps=3), method="ibp")
    wrong = [result for result in report.results if result.verdict == "misclassified"]
    assert wrong
    assert attacked_samples(model, images, wrong, EPS, 3) == []
