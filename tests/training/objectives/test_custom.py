"""A user's own objective: it trains as a shipped one does, its errors name its file, and a changed file is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from certtrain import RunContext, load_preset, objective_terms, resume, train
from certtrain.errors import CerttrainError, PresetError, RunError
from certtrain.spec.preset import Preset
from helpers.small_runs import small, stop_before
from helpers.small_steps import batch, network, preset

pytestmark = pytest.mark.usefixtures("short")
SAME = """
from certtrain import Objective, RobustLosses, margin_losses


class Mine(Objective):
    def __init__(self, graph, scale=1.0):
        self.scale = scale

    def robust(self, passes, found):
        trace = passes.trace(passes.input_box())
        margins = trace.margins(passes.labels)
        losses = self.scale * margin_losses(margins, passes.labels)
        return RobustLosses(losses, margins, (trace,), {"scaled_loss": losses})


def not_one(graph):
    return 3
"""


def write(folder: Path, text: str = SAME) -> Path:
    file = folder / "mine.py"
    file.write_text(text, encoding="utf-8")
    return file


def section(file: Path, name: str = "Mine", **fields: Any) -> dict[str, Any]:
    return {"name": "custom", "source": f"{file}:{name}"} | fields


def run_preset(file: Path, **fields: Any) -> Preset:
    return load_preset(small().model_dump(mode="json") | {"objective": section(file, **fields)})


def terms(objective: dict[str, Any]) -> Any:
    x, labels = batch()
    return objective_terms(network(preset()).train(), x.double(), labels, 0.05, eps_max=0.05, objective=objective)


def test_an_own_objective_computes_what_a_shipped_one_does(tmp_path: Path):
    own, shipped = terms(section(write(tmp_path))), terms({"name": "ibp"})
    assert own.total.item() == shipped.total.item()
    assert own.measures["scaled_loss"].item() == pytest.approx(shipped.robust.item())


def test_its_arguments_are_given_by_name(tmp_path: Path):
    file = write(tmp_path)
    twice, once = terms(section(file, arguments={"scale": 2.0})), terms(section(file))
    assert twice.robust.item() == pytest.approx(2 * once.robust.item())


def test_a_run_trains_by_it_and_resumes(tmp_path: Path):
    file = write(tmp_path)
    assert train(run_preset(file), tmp_path / "run", RunContext(should_stop=stop_before(7))) is None
    saved = json.loads((tmp_path / "run" / "preset.json").read_text())
    assert len(saved["objective"]["sha256"]) == 64
    report = resume(tmp_path / "run")
    assert report is not None
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["scaled_loss"] == pytest.approx(line["robust_loss"]) for line in lines)
    same = train(small(), tmp_path / "same")
    assert same is not None
    assert report.certified == same.certified


def test_a_changed_file_is_refused(tmp_path: Path):
    file = write(tmp_path)
    train(run_preset(file), tmp_path / "run", RunContext(should_stop=stop_before(3)))
    write(tmp_path, SAME + "# changed\n")
    with pytest.raises(RunError, match="has changed since the run began; restore it, or start a new run"):
        resume(tmp_path / "run")
    file.unlink()
    with pytest.raises(PresetError, match="cannot be read"):
        resume(tmp_path / "run")


BROKEN = {
    "mine.py has no 'Other'; it has ": (SAME, "Other"),
    "not_one returns 3, which is not a certtrain.Objective": (SAME, "not_one"),
    "cannot be run: ZeroDivisionError": ("1 / 0", "Mine"),
    r"Mine\(\) raises TypeError": (SAME.replace("scale=1.0", "scale"), "Mine"),
    r"Mine.robust raises KeyError: 'no' \(.*mine.py, line 10\)": (
        SAME.replace("        trace = ", "        {}['no']\n        trace = "),
        "Mine",
    ),
    r"Mine.robust gives losses of shape \(\), and must give \(11,\)": (
        SAME.replace("margin_losses(margins, passes.labels)\n", "margin_losses(margins, passes.labels).mean()\n"),
        "Mine",
    ),
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_is_wrong_with_it_is_said(message: str, tmp_path: Path):
    text, name = BROKEN[message]
    with pytest.raises(PresetError, match=message):
        terms(section(write(tmp_path, text), name))


@pytest.mark.parametrize("source", ["mine", "mine.py", "mine.py:", ":Mine", "mine.py:my-objective"])
def test_a_source_that_names_no_class_is_refused(source: str):
    with pytest.raises(CerttrainError, match="source"):
        load_preset("digits", {"objective.name": "custom", "objective.source": source})


def test_nothing_is_left_of_a_run_whose_objective_cannot_be_made(tmp_path: Path):
    file = write(tmp_path)
    with pytest.raises(PresetError):
        train(run_preset(file, arguments={"speed": 1}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_random_numbers_of_its_file_do_not_change_the_run(tmp_path: Path):
    text = "import torch\ntorch.manual_seed(99)\nprint('hello')\n" + SAME
    torch.manual_seed(1)
    before = torch.rand(1)
    torch.manual_seed(1)
    terms(section(write(tmp_path, text)))
    assert torch.equal(torch.rand(1), before)
