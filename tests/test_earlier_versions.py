"""Files that earlier versions wrote: certtrain 0.1.0 wrote those in `files/version-0.1`, with presets of no format."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from certtrain import RunContext, cli, load_model, load_preset, resume
from certtrain.errors import PresetError
from certtrain.spec import migration

OLD = Path(__file__).parent / "files" / "version-0.1"
MODEL = OLD / "model.safetensors"


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_an_old_model_loads_with_its_preset():
    model = load_model(MODEL)
    assert "format" not in model.metadata.preset
    written = dict(model.metadata.preset)
    assert written.pop("bounds") == {"method": "ibp", "loss_fusion": True}
    found = load_preset(model.metadata.preset).model_dump(mode="json")
    assert (found["format"], found["objective"]["name"]) == (migration.FORMAT, "ibp")
    for section, values in written.items():
        assert values == (found[section] if not isinstance(values, dict) else {n: found[section][n] for n in values})


def test_an_old_models_results_stand():
    results = load_model(MODEL).metadata.results
    assert results is not None
    found = json.loads(run("verify", str(MODEL), "--json"))
    assert {name: found[name] for name in ("certified", "misclassified")} == {
        name: results[name] for name in ("certified", "misclassified")
    }


def test_old_certificates_with_trees_hold():
    text = (OLD / "certificates.jsonl").read_text()
    trees = [tree for line in text.splitlines() for tree in json.loads(line).get("trees", {}).values()]
    assert max(map(len, trees)) > 100, "some tree has splits"
    run("check", str(OLD / "certificates.jsonl"), str(MODEL))


def test_an_old_run_goes_on_to_the_model_that_it_would_have_become(tmp_path: Path):
    shutil.copytree(OLD / "run", tmp_path / "run")
    assert resume(tmp_path / "run", RunContext()) is not None
    old, new = tensors_of(MODEL), tensors_of(tmp_path / "run" / "model.safetensors")
    assert old.keys() == new.keys()
    for name, tensor in old.items():
        before_batch_norm = name.endswith(".bias") and f"{name.removesuffix('.bias')}_bn.bias" in old
        # The gradient of such a bias is rounding alone, which Adam makes as large as any other; so is its running mean.
        atol = 1e-2 if before_batch_norm or name.endswith("running_mean") else 1e-4
        torch.testing.assert_close(new[name], tensor, rtol=1e-3, atol=atol)


# --- migration -------------------------------------------------------------------------------------------


def test_a_renamed_field_is_read_under_its_old_name(monkeypatch: pytest.MonkeyPatch):
    def renamed(values: dict[str, object]) -> dict[str, object]:
        values["description"] = values.pop("about")
        return values

    monkeypatch.setattr(migration, "MIGRATIONS", (renamed,))
    monkeypatch.setattr(migration, "FORMAT", 2)
    assert migration.migrated({"about": "old"}) == {"description": "old", "format": 2}
    assert migration.migrated({"description": "new", "format": 2}) == {"description": "new", "format": 2}


def test_what_is_migrated_stays_as_it_was():
    values = {"name": "x"}
    assert migration.migrated(migration.migrated(values)) == {"name": "x", "format": migration.FORMAT}
    assert values == {"name": "x"}


@pytest.mark.parametrize(
    ("number", "words"),
    [(migration.FORMAT + 1, f"newer than {migration.FORMAT}"), (0, "not the number"), ("1", "not the number")],
)
def test_a_preset_of_another_format_says_so(number: object, words: str):
    fields = load_preset("digits").model_dump(mode="json") | {"format": number}
    with pytest.raises(PresetError, match=words):
        load_preset(fields)
