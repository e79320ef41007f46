"""certtrain init: one network, schemes side by side, and depths."""

import json
from pathlib import Path

from helpers.command_line import TINY, Run


def test_init_saves_the_network_and_shows_its_growth(run: Run, tmp_path: Path) -> None:
    done = run("init", "--preset", "digits", "--scheme", "xavier", "--plot", "g.png")
    assert done.code == 0, done.err
    assert "wrote digits-xavier.safetensors" in done.out
    assert (tmp_path / "g.png").exists()
    assert run("stats", "digits-xavier.safetensors", "--limit", "10").code == 0
    found = json.loads(run("init", "--preset", "digits", "--scheme", "xavier", "--json", "--force").out)
    assert (found["model"], found["schemes"][0]["scheme"]) == ("digits-xavier.safetensors", "xavier")


def test_init_compares_the_schemes_over_seeds_and_writes_no_model(run: Run, tmp_path: Path) -> None:
    words = ["init", "--preset", "digits", "--compare", "--scheme", "xavier", "--seed", "4", "--seeds", "2"]
    found = json.loads(run(*words, "--json").out)
    assert (found["model"], found["seeds"]) == (None, [4, 5])
    assert [scheme["scheme"] for scheme in found["schemes"]] == ["xavier", "ibp", "kaiming", "orthogonal"]
    growth = {s["scheme"]: s["by_weights"][-1] for s in found["schemes"]}
    assert growth["kaiming"]["growth"] > 20 * growth["ibp"]["growth"]
    assert all(len(row["values"]) == 2 and row["min"] < row["growth"] < row["max"] for row in growth.values())
    assert list(tmp_path.iterdir()) == []


def test_init_compares_in_the_terminal_and_as_a_picture(run: Run, tmp_path: Path) -> None:
    done = run("init", "--preset", "digits", "--compare", "--plot", "c.png")
    assert done.code == 0, done.err
    assert "seeds 0 to 2" in done.out
    assert {path.name for path in tmp_path.iterdir()} == {"c.png"}


def test_a_comparison_writes_the_model_it_is_asked_for(run: Run) -> None:
    done = run("init", "-p", "digits", "--compare", "--seeds", "1", "--seed", "3", "--out", "m.safetensors")
    assert "wrote m.safetensors" in done.out
    assert run("init", "-p", "digits", "--seed", "3", "--out", "n.safetensors").code == 0
    first, second = Path("m.safetensors").read_bytes(), Path("n.safetensors").read_bytes()
    assert first == second


def test_init_sweeps_depth(run: Run, tmp_path: Path) -> None:
    words = ["init", "-p", "digits", "--sweep-depth", "4,1,2,2", "--seeds", "2", *TINY]
    done = run(*words, "--plot", "s.png")
    assert done.code == 0, done.err
    assert "linear layers of 8 units" in done.out
    assert "kaiming: ×" in done.out
    assert {path.name for path in tmp_path.iterdir()} == {"s.png"}
    found = json.loads(run(*words, "--json").out)
    assert found["network"] == "linear layers of 8 units"
    for scheme in found["schemes"]:
        assert [point["depth"] for point in scheme["depths"]] == [1, 2, 4]
        assert scheme["rate"] > 0
