"""The folder with a run's images is given once: the run remembers it."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from certtrain import load_model
from certtrain.runs.runfiles import DATA, recorded_data_folder
from helpers.command_line import QUICK, Outcome, Run

SAID = "the images are read from"


@pytest.fixture
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image folder with two classes."""
    monkeypatch.setenv("CERTTRAIN_CACHE", str(tmp_path / "cache"))
    for split in ("train", "test"):
        for name, level in (("cat", 40), ("dog", 200)):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for number in range(6):
                Image.new("L", (8, 8), level + number).save(tmp_path / "pets" / split / name / f"{number}.png")
    return tmp_path / "pets"


def train(run: Run, *words: str) -> Outcome:
    own = ("--set", "data.name=folder", "--set", "train.batch_size=4", "--data-dir", "pets")
    return run(*QUICK, *own, "--out", "mine", *words)


def test_every_command_reads_the_images_of_the_run_and_says_where(run: Run, pets: Path, tmp_path: Path) -> None:
    assert train(run).code == 0
    assert json.loads((tmp_path / "mine" / DATA).read_text()) == {"data_dir": str(pets)}
    for words in (
        ("verify", "mine", "--out", "c.jsonl"),
        ("verify", "mine/model.safetensors"),
        ("check", "c.jsonl", "mine"),
        ("stats", "mine"),
        ("stats", "mine", "--by-epoch"),
        ("export", "mine", "--weights", "folded.safetensors"),
    ):
        done = run(*words)
        assert done.code == 0, done.err
        assert f"note: {SAID} {pets}" in done.err
    assert SAID not in run("verify", "mine", "--data-dir", "pets").err
    shutil.copy("mine/model.safetensors", "elsewhere.safetensors")
    refused = run("verify", "elsewhere.safetensors")
    assert (refused.code, "give it with --data-dir" in refused.err) == (1, True)


def test_if_the_folder_is_gone_the_message_is_the_usual_one(run: Run, pets: Path) -> None:
    assert train(run).code == 0
    other = pets.rename(pets.with_name("moved"))
    for command in ("verify", "stats", "export"):
        refused = run(command, "mine")
        assert refused.code == 1
        assert "an image folder has no default; give it with --data-dir" in refused.err
    assert run("verify", "mine", "--data-dir", str(other)).code == 0


def test_a_run_is_resumed_with_its_images_and_a_new_folder_is_remembered(run: Run, pets: Path, tmp_path: Path) -> None:
    assert train(run, "--time-budget", "0.000001s").code == 0
    assert run("verify", "mine", "--limit", "4").code == 0, "its checkpoint needs them too"
    assert load_model("mine").metadata.class_names == ("cat", "dog")
    moved = pets.rename(pets.with_name("moved"))
    assert run("train", "--resume", "mine", "--data-dir", "moved", "--time-budget", "0.000001s").code == 0
    assert recorded_data_folder(tmp_path / "mine") == moved
    done = run("train", "--resume", "mine")
    assert done.code == 0, done.err
    assert f"{SAID} {moved}, as before" in done.out


def test_a_run_of_data_that_need_no_folder_remembers_none(run: Run, trained: Path) -> None:
    assert not (trained / DATA).exists()
    assert recorded_data_folder(trained) is None
    assert SAID not in run("verify", trained, "--limit", "5").err


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"data_dir": 3}', '{"data_dir": "/nowhere/at/all"}'])
def test_a_damaged_record_is_no_record(tmp_path: Path, content: str) -> None:
    (tmp_path / DATA).write_text(content)
    assert recorded_data_folder(tmp_path) is None
