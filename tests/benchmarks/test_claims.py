"""The claims' report, on made-up results: the sentences follow the data, and what is missing is marked."""

import re
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from helpers.html_pages import Page

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SETTINGS = [(eps, warm_up) for eps in (0.3, 0.4) for warm_up in ("short", "long")]


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    """The benchmarks are scripts beside each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield
    for name in ("claims", "claims_plan", "claims_found", "claims_judge", "claims_pictures", "claims_report"):
        sys.modules.pop(name, None)


def record(run: Any, verified: float, dead: float = 0.1, failed: bool = False) -> dict[str, Any]:
    """A result with that verified error in the end and that share of dead units."""
    from claims_plan import MNIST

    layer = {"active": 0.3, "unstable": 0.1, "inactive": 0.6, "dead": dead}
    epochs = [
        {"validation_certified_accuracy": (1 - verified) * n / 12, "layers": [layer, layer]} for n in range(1, 13)
    ]
    results = {"natural_accuracy": 0.9, "certified_accuracy": 1 - verified}
    return {
        "run": asdict(run),
        "settings": MNIST.changes(run),
        "results": None if failed else results,
        "failure": "the loss is not finite" if failed else None,
        "epochs": epochs[:3] if failed else epochs,
    }


def made_up(errors: dict[str, float], dead: dict[str, float] | None = None, seeds: int = 3) -> Any:
    """All runs; `errors` by "method" or "method, warm-up" (0.2 for the others), which seeds change by 0.01."""
    from claims_found import Found
    from claims_plan import METHODS, Run

    records = {}
    for method, (eps, warm_up), seed in product(METHODS, SETTINGS, range(seeds)):
        run = Run(method, warm_up, eps, seed)
        error = errors.get(f"{method}, {warm_up}", errors.get(method, 0.2))
        records[run] = record(run, error + 0.01 * seed, (dead or {}).get(method, 0.1) + 0.01 * seed)
    return Found(records)


def sentence(found: Any, number: int) -> str:
    from claims_judge import claims

    return str(claims(found)[number].sentence)


def sweep(scheme: Any, rate: float) -> Any:
    from certtrain.diagnostics.growth import DepthSweep, spread

    depths = (2, 4, 8, 16, 32)
    return DepthSweep(scheme, depths, tuple(spread([rate**depth]) for depth in depths), rate)


def sweeps(**rates: float) -> list[Any]:
    return [sweep(scheme, rates.get(scheme, 3.0)) for scheme in ("ibp", "kaiming", "xavier", "orthogonal")]


# --- the rule --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "greater", "less"),
    [
        ((5, 6, 7), (1, 2, 3), "shows", "opposite"),
        ((3, 4, 5), (1, 2, 3), "not significant", "not significant"),  # two standard deviations are not more than two
        ((1, 2, 3), (3, 4, 5), "not significant", "not significant"),
        ((1, 2, 3), (5, 6, 7), "opposite", "shows"),
        ((5, 6), (1, 2, 3), "too few runs", "too few runs"),
        ((), (1, 2, 3), "too few runs", "too few runs"),
        ((0, 0, 0), (0, 0, 0), "not significant", "not significant"),
    ],
)
def test_one_rule_holds_a_difference_against_the_pooled_spread_both_ways(
    first: Any, second: Any, greater: str, less: str
):
    from claims_judge import Comparison

    assert Comparison(first, second).outcome == greater
    assert Comparison(first, second, "less").outcome == less


def test_the_limit_by_hand():
    from claims_judge import Comparison

    found = Comparison((1.0, 3.0, 5.0), (10.0, 10.0, 10.0, 14.0))
    assert found.limit == pytest.approx(2 * ((8 + 12) / 5) ** 0.5)
    assert str(found) == "−8.0 (±4.0) opposite"


# --- the sentences ---------------------------------------------------------------------------------------


def test_growth_is_judged_by_its_trend():
    from claims_judge import judge_growth

    assert judge_growth(sweeps(ibp=0.98)) == (
        "Explosion, shows: “before training, bounds explode with depth by the usual initialisations, and not by the "
        "IBP initialisation”; each layer multiplies their width by 0.98 (ibp), 3 (kaiming), 3 (xavier) and 3 "
        "(orthogonal)."
    )
    assert "does not show at this scale for xavier:" in judge_growth(sweeps(ibp=1.0, xavier=1.01))
    assert "does not show at this scale for xavier and ibp:" in judge_growth(sweeps(ibp=4.0, xavier=1.01))


def test_dead_units_are_judged_method_by_method():
    found = made_up({}, {"vanilla IBP": 0.5, "fast without BatchNorm": 0.3, "fast without balance": 0.05})
    assert sentence(found, 0) == (
        "Dead units, shows in part: “by vanilla IBP, and without BatchNorm or a regulariser, more units are dead than "
        "by the whole method (fast)”; it shows for vanilla IBP (+40.0) and fast without BatchNorm (+20.0); not "
        "significant for fast without tightness (0.0); the opposite shows for fast without balance (−5.0)."
    )


@pytest.mark.parametrize(
    ("short", "verdict", "ending"),
    [
        (0.21, "not significant at this scale", "not significant for fast (+1.0 at ε = 0.3; +1.0 at ε = 0.4)."),
        (0.3, "the opposite shows", "the opposite shows for fast (+10.0 at ε = 0.3; +10.0 at ε = 0.4)."),
        (0.1, "shows", "it shows for fast (−10.0 at ε = 0.3; −10.0 at ε = 0.4)."),
    ],
)
def test_a_short_warm_up_is_judged_at_each_radius_and_equal_is_not_said(short: float, verdict: str, ending: str):
    words = sentence(made_up({"fast, short": short}), 3)
    assert words.startswith(f"Short warm-up of fast, {verdict}: “with all improvements")
    assert words.endswith(ending)


def test_the_baselines_need_the_long_one():
    found = made_up({"vanilla IBP, short": 0.6, "CROWN-IBP, short": 0.6, "CROWN-IBP with BatchNorm, short": 0.1})
    assert sentence(found, 4).endswith(
        "it shows for vanilla IBP (+40.0 at ε = 0.3; +40.0 at ε = 0.4) and CROWN-IBP (+40.0 at ε = 0.3; +40.0 at "
        "ε = 0.4); not significant for vanilla IBP with BatchNorm (0.0 at ε = 0.3; 0.0 at ε = 0.4); the opposite shows "
        "for CROWN-IBP with BatchNorm (−10.0 at ε = 0.3; −10.0 at ε = 0.4)."
    )


def test_a_claim_may_show_in_some_settings_only():
    assert (
        "in part for fast without balance (0.0 to +10.0; not significant at ε = 0.3, short and ε = 0.4, short)"
        in sentence(made_up({"fast without balance, long": 0.3}), 2)
    )


def test_what_a_claim_says_of_no_setting_does_not_show():
    from claims_judge import Claim, Comparison, Part

    equal, less = Comparison((1, 2, 3), (1, 2, 3)), Comparison((1, 2, 3), (7, 8, 9))
    claim = Claim("Topic", "so it is", (Part("a", {"here": equal, "there": less}), Part("b", {"here": equal})))
    assert claim.sentence == (
        "Topic, does not show at this scale: “so it is”; not significant for b (0.0 at here); "
        "not for a (0.0 at here, not significant; −6.0 at there, opposite)."
    )


# --- runs that collapse ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_a_collapsed(importable: None) -> Any:
    """One run guesses one class, another is as bad but no constant guess."""
    from claims_plan import Run

    found = made_up({"vanilla IBP, short": 0.5})
    for seed, natural, certified in ((1, 0.1148, 0.1148), (2, 0.13, 0.10)):
        results = found.records[Run("vanilla IBP", "short", 0.4, seed)]["results"]
        results |= {"natural_accuracy": natural, "certified_accuracy": certified}
    return found


def test_a_collapsed_run_is_named_and_marked_by_another_sign_than_the_star(with_a_collapsed: Any):
    from claims_report import error_table, markdown, state_table

    rows = {row[0]: row for row in error_table(with_a_collapsed, 0.4)}
    assert rows["vanilla IBP"][2].endswith(" († 1 collapsed)")
    states = {row[0]: row for row in state_table(with_a_collapsed, 0.4)}
    assert states["vanilla IBP"][1] == "30.0†"
    assert "†" not in "".join(cell for row in error_table(with_a_collapsed, 0.3) for cell in row)
    text = markdown(with_a_collapsed, sweeps())
    assert "1 of 108 runs has collapsed to a constant guess" in text
    assert "(†): vanilla IBP, ε = 0.4, short, seed 1 (11.48 %)." in text


def test_a_verdict_that_rests_on_a_collapsed_run_says_so(with_a_collapsed: Any):
    from claims_judge import claims

    by_topic = {claim.topic: claim for claim in claims(with_a_collapsed)}
    words = by_topic["Short warm-up of the baselines"].sentence
    assert "† at ε = 0.4" in words
    assert words.endswith("1 of 8 comparisons (†) rest on collapsed runs.")
    assert "†" not in by_topic["Short against long"].sentence


def test_with_two_seeds_nothing_is_said():
    from claims_judge import claims

    for claim in claims(made_up({"vanilla IBP": 0.9}, seeds=2)):
        assert claim.verdict == "too few runs"
        assert re.search(r"; (\d+) of \1 comparisons have too few runs\.$", claim.sentence)


# --- tables, page and pictures ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def incomplete(importable: None) -> Any:
    """One run is missing, another failed."""
    from claims_plan import Run

    found = made_up({"fast": 0.1, "vanilla IBP": 0.5})
    del found.records[Run("fast", "short", 0.3, 2)]
    lost = Run("vanilla IBP", "long", 0.3, 1)
    found.records[lost] = record(lost, 0.5, failed=True)
    return found


def test_a_missing_and_a_failed_run_are_marked_where_they_are(incomplete: Any):
    from claims_report import error_table, state_table

    rows = {row[0]: row[1:] for row in error_table(incomplete, 0.3)}
    assert rows["fast"] == [
        "10.00 ± 0.00 (2 of 3 seeds)",
        "10.50 ± 0.71 (2 of 3 seeds)",
        "10.00 ± 0.00",
        "11.00 ± 1.00",
    ]
    assert rows["vanilla IBP"][3] == "51.00 ± 1.41 (1 failed)"
    assert "(" not in "".join(rows["CROWN-IBP"])
    header, *states = state_table(incomplete, 0.3)
    assert header[1:5] == ["active %, short", "unstable %, short", "inactive %, short", "dead %, short"]
    assert {row[0]: row[4] for row in states}["fast"] == "10.5*"
    assert {row[0]: row[8] for row in states}["fast"] == "11.0"
    whole = error_table(incomplete, 0.4) + state_table(incomplete, 0.4)
    assert not re.search(r"[*(]", "".join(cell for row in whole for cell in row))


def test_markdown_has_the_sentences_and_tables_that_fit(incomplete: Any):
    from claims_report import markdown

    text = markdown(incomplete, sweeps(ibp=1.0))
    assert text.startswith("107 of 108 runs are done; 1 of them failed.\n\n1. Explosion, shows:")
    tables = re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE)
    assert len(tables) == 6 + 1 + 4
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_the_page_has_sentences_tables_and_a_panel_for_each_method(incomplete: Any):
    from claims_found import short
    from claims_plan import METHODS
    from claims_report import page as claims_page

    page = Page(claims_page(incomplete, sweeps(ibp=1.0)))
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == 1 + 2 * 3
    assert "107 of 108 runs are done; 1 of them failed." in page.text
    for method in METHODS:
        assert short(method) in page.text
    assert "fast (short: 2 of 3 seeds)" in page.text
    assert "vanilla IBP (long: 1 failed)" in page.text


def test_what_has_no_runs_is_left_out_or_empty():
    from claims_found import Found
    from claims_plan import Run
    from claims_report import markdown
    from claims_report import page as claims_page

    run = Run("vanilla IBP", "short", 0.3, 0)
    found = Found({run: record(run, 0.5)})
    assert "ε = 0.4. Mean" not in markdown(found, sweeps())
    page = claims_page(found, sweeps())
    assert "fast (short: 0 of 1 seeds; long: 0 of 1 seeds)" in page
    assert "Training at ε = 0.4" not in page


def test_the_command_reads_a_folder_and_refuses_other_settings(
    incomplete: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import json

    import claims_report

    for run, found in incomplete.records.items():
        run.file(tmp_path).write_text(json.dumps(found), encoding="utf-8")
    monkeypatch.setattr(claims_report, "growth", lambda plan, data_dir: sweeps(ibp=1.0))
    monkeypatch.setattr(sys, "argv", ["claims_report", "--folder", str(tmp_path), "--page", str(tmp_path / "p.html")])
    claims_report.main()
    assert capsys.readouterr().out.startswith("107 of 108 runs")
    assert (tmp_path / "p.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    other = tmp_path / "fast-long-0.3-0.json"
    changed = json.loads(other.read_text())
    changed["settings"]["train.epochs"] = 3
    other.write_text(json.dumps(changed))
    with pytest.raises(SystemExit, match="made with other settings"):
        claims_report.main()


# --- folders with something wrong ------------------------------------------------------------------------


def test_a_folder_without_results_is_an_error(tmp_path: Path):
    from claims_report import results

    with pytest.raises(SystemExit, match=r"there is no folder .*typo"):
        results(tmp_path / "typo")
    with pytest.raises(SystemExit, match="holds no results"):
        results(tmp_path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:100],
        lambda text: "[]",
        lambda text: text.replace('"dead"', '"alive"'),
        lambda text: text.replace('"seed": 0', '"seed": 0, "luck": 1'),
        lambda text: text.replace('"natural_accuracy": 0.9', '"natural_accuracy": NaN'),
        lambda text: text.replace('"natural_accuracy": 0.9', '"natural_accuracy": "much"'),
    ],
)
def test_a_damaged_result_is_named(tmp_path: Path, spoil: Any):
    import json

    from claims_plan import Run
    from claims_report import results

    run = Run("fast", "short", 0.3, 0)
    text = json.dumps(record(run, 0.2))
    run.file(tmp_path).write_text(text, encoding="utf-8")
    assert len(results(tmp_path).records) == 1
    run.file(tmp_path).write_text(spoil(text), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"fast-short-0\.3-0\.json is damaged"):
        results(tmp_path)


# --- on another preset -----------------------------------------------------------------------------------


def test_a_presets_grid_has_its_own_network_and_ramp_and_each_of_its_runs_is_valid():
    from claims_plan import METHODS, Run, plan_for

    plan = plan_for("digits", None)
    assert list(plan.methods) == list(METHODS)
    assert plan.radii == (0.1,)
    assert plan.epochs == 50
    fast, vanilla = (plan.preset_of(Run(name, "short", 0.1, 1)) for name in ("fast", "vanilla IBP"))
    assert (fast.eps.length, plan.preset_of(Run("fast", "long", 0.1, 1)).eps.length) == (10, 20)
    assert (fast.init, fast.model.batch_norm, fast.regularizer.tightness) == ("ibp", True, True)
    assert (vanilla.init, vanilla.model.batch_norm, vanilla.regularizer.tightness) == ("xavier", False, False)
    assert (fast.seed, fast.data.validation, fast.data.verify_on) == (1, 1437 // 5, "validation")
    assert 0.1 < plan.largest_class < 0.12
    for method in METHODS:
        plan.preset_of(Run(method, "long", 0.05, 0))


def test_a_network_without_a_switch_has_no_cells_of_batch_norm_and_the_page_says_so(tmp_path: Path):
    from claims_found import Found
    from claims_plan import Run, plan_for
    from claims_report import markdown

    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n"
        "def Net(classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, classes))\n"
    )
    preset = tmp_path / "own.toml"
    source = str(tmp_path / "net.py")
    preset.write_text(
        f'name = "own"\n[data]\nname = "digits"\n[model]\nname = "module"\nsource = {f"{source}:Net"!r}\n'
        '[eps]\nmax = "8/255"\nlength = 4\n[train]\nepochs = 8\n'
    )
    plan = plan_for(str(preset), None)
    assert not [name for name in plan.methods if "BatchNorm" in name]
    assert {"vanilla IBP", "CROWN-IBP", "fast", "fast without balance"} <= set(plan.methods)
    run = Run("fast", "short", plan.radii[0], 0)
    plan.preset_of(run)
    text = markdown(Found({run: record(run, 0.5)}, plan), sweeps(ibp=1.0))
    assert "has no batch_norm switch" in text
    assert "ε = 8/255. Mean" in text
    assert "1 of 36 runs are done." in text


def test_a_folder_keeps_its_plan_and_refuses_another(tmp_path: Path):
    from claims_plan import MNIST, check_plan, plan_for, read_plan, save_plan

    save_plan(tmp_path, MNIST)
    assert not list(tmp_path.iterdir())
    assert read_plan(tmp_path) == MNIST
    plan = plan_for("digits", None)
    save_plan(tmp_path, plan)
    check_plan(tmp_path, plan)
    assert read_plan(tmp_path).methods == plan.methods
    for other in (MNIST, plan_for("digits", None, (0.05,))):
        with pytest.raises(SystemExit, match="of another preset"):
            check_plan(tmp_path, other)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(SystemExit, match="is damaged"):
        read_plan(tmp_path)


def test_a_ramp_that_cannot_be_halved_is_an_error(tmp_path: Path):
    from claims_plan import plan_for

    from certtrain.errors import PresetError

    preset = tmp_path / "jump.toml"
    preset.write_text(
        'name = "jump"\n[data]\nname = "digits"\n[model]\nname = "mlp"\nhidden = [8]\n'
        "[eps]\nmax = 0.1\nlength = 1\n[train]\nepochs = 3\n"
    )
    with pytest.raises(PresetError, match="a short and a long warm-up need 2"):
        plan_for(str(preset), None)
