"""The documentation is true: its commands and its Python run as they stand, and what it names is there."""

import json
import re
import runpy
import shlex
import textwrap
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from pydantic.fields import FieldInfo
from typer.main import get_command

from certtrain import cli
from certtrain.bounds.activations import ACTIVATIONS
from certtrain.bounds.methods import METHODS
from certtrain.bounds.rounding import ARITHMETICS
from certtrain.certfile import Header, Record, Seal
from certtrain.cli.exit_codes import ExitCode
from certtrain.diagnostics import findings
from certtrain.runtime import threads
from certtrain.spec.architecture import NETWORKS
from certtrain.spec.epsilon import parse_eps
from certtrain.spec.layers import SECTIONS
from certtrain.spec.objective import OBJECTIVES, AttackSection, ObjectiveSection
from certtrain.spec.preset import load_preset, preset_names
from certtrain.verdicts import VERDICTS
from certtrain.verification.certificate import PIXEL_INPUTS
from helpers.documents import DOCS, ROOT, blocks, commands, run
from helpers.small_runs import without_pages

OWN, QUICKSTART, DIAGNOSTICS, CERTIFICATES, CERTIFICATE_FILES, METHODS_PAGE, OBJECTIVES_PAGE, DURATIONS, EPSILON = (
    (DOCS / f"{name}.md").read_text(encoding="utf-8")
    for name in (
        "own",
        "quickstart",
        "diagnostics",
        "certificates",
        "certfiles",
        "methods",
        "objectives",
        "durations",
        "epsilon",
    )
)


def _draw(page: str, folder: Path, how_many: dict[str, int]) -> None:
    """The image folder that the page lays out, with circles and crosses of many sizes and places."""
    (layout,) = [block.text for block in blocks(page) if block.language == "text"]
    random = torch.Generator().manual_seed(0)
    for first in layout.split():
        place = folder / Path(first).parent
        place.mkdir(parents=True)
        for number in range(how_many[place.parent.name]):
            left, top, size = (int(torch.randint(n, (), generator=random)) for n in (5, 5, 4))
            box = (left, top, left + 7 + size, top + 7 + size)
            image = Image.new("RGB", (16, 16), "black")
            pen = ImageDraw.Draw(image)
            if place.name == "circle":
                pen.ellipse(box, outline="white", width=2)
            else:
                pen.line(box, fill="white", width=2)
                pen.line((box[0], box[3], box[2], box[1]), fill="white", width=2)
            image.save(place / f"{number + 1:04}.png")


def _followed(shell: list[str], folder: Path) -> list[str]:
    """What each block prints in the folder; pages are drawn in the first one alone, as they take longer than runs."""
    first, *others = shell
    printed = run(first, folder)
    with without_pages():
        return [printed, *(run(block, folder) for block in others)]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder in which the page on one's own model and data has been followed, and what each command printed."""
    folder = tmp_path_factory.mktemp("own")
    _draw(OWN, folder, {"train": 60, "test": 20})
    for block in blocks(OWN):
        if block.file is not None:
            (folder / block.file).write_text(block.text, encoding="utf-8")
    return folder, _followed(commands(OWN), folder)


@pytest.mark.slow
def test_own_network_and_images_train_from_the_command_line_as_the_page_says(own: tuple[Path, list[str]]) -> None:
    folder, (printed, *_) = own
    files = {path.name for path in (folder / "runs/shapes").iterdir()}
    assert {"model.safetensors", "model-folded.safetensors", "model.onnx", "report.json", "report.html"} <= files
    results = json.loads((folder / "runs/shapes/report.json").read_text())["results"]
    assert results["certified_accuracy"] > 0.6
    assert results["examples"] == 40
    assert "network.relu_2" in printed  # stats


@pytest.mark.slow
def test_verify_prints_the_certified_accuracy_of_ones_own_network(own: tuple[Path, list[str]]) -> None:
    folder, (printed, *_) = own
    results = json.loads((folder / "runs/shapes/report.json").read_text())["results"]
    assert printed.count(f"{100 * results['certified_accuracy']:.2f}%") >= 2  # after the training, and by verify
    assert "ε = 2/255" in printed


@pytest.mark.slow
def test_the_same_run_from_python_has_the_same_result(own: tuple[Path, list[str]]) -> None:
    folder, (_, printed, *_) = own
    reports = [json.loads((folder / "runs" / run / "report.json").read_text()) for run in ("shapes", "from-python")]
    shapes, from_python = (report["results"] for report in reports)
    assert f"certified on the test images: {from_python['certified_accuracy']:.1%}" in printed
    assert len(re.findall(r"^\d{4}\.png: \w+, margin -?\d+\.\d{3}$", printed, flags=re.M)) == 5
    if not torch.cuda.is_available():  # the command would take it, the script does not
        assert shapes["certified_accuracy"] == from_python["certified_accuracy"]


@pytest.mark.slow
def test_ones_own_objective_trains_as_the_page_says(own: tuple[Path, list[str]]) -> None:
    folder, (_, _, printed, *_) = own
    line = json.loads((folder / "runs/if-robust/metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < line["adversarial_accuracy"] <= 1
    assert "certified" in printed


@pytest.mark.slow
def test_ones_own_loop_trains_a_network_that_certifies(own: tuple[Path, list[str]]) -> None:
    _, (*_, printed) = own
    (certified,) = re.findall(r"^certified: (\d+) of 40$", printed, flags=re.M)
    assert int(certified) > 24


def test_the_page_on_ones_own_network_lists_every_layer_with_a_rule() -> None:
    (line,) = re.findall(r"^These have a rule as modules: ([^.]*)\.", OWN, flags=re.M)
    assert set(re.findall(r"`(\w+)`", line)) == set(SECTIONS) - {"Add", "Shared", "Normalize"}


def test_files_of_a_page_are_written_once_and_used() -> None:
    files = [block.file for block in blocks(OWN) if block.file is not None]
    assert len(files) == len(set(files)) == 6
    shell = "\n".join(commands(OWN))
    assert {"train_shapes.py", "own_loop.py", "shapes.toml"} <= set(re.findall(r"[\w-]+\.(?:py|toml)", shell))


# --- a page for each command -----------------------------------------------------------------------------

GENERATE = runpy.run_path(str(DOCS / "generate.py"))
COMMANDS = get_command(cli.app).commands  # type: ignore[attr-defined]


def test_the_commands_pages_are_what_the_program_says() -> None:
    written = {path.name: path.read_text(encoding="utf-8") for path in (DOCS / "commands").iterdir()}
    assert written == GENERATE["pages"](), "run python docs/generate.py"


def test_every_command_argument_and_option_has_help() -> None:
    for name, command in COMMANDS.items():
        assert command.help, name
        assert all(parameter.help for parameter in command.params), name


def test_the_commands_pages_name_every_option_and_its_default() -> None:
    page = GENERATE["pages"]()["verify.md"]
    assert "- `--pgd-restarts N`: Number of random starts of the attack. At least 1. Default: `1`." in page
    assert "- `--split NAME`: Which part of the data set. One of: train, validation, test. Default: `test`." in page
    assert "- `--json`: Print JSON instead of tables." in page
    assert "Environment variable: `CERTTRAIN_DATA_DIR`." in page
    assert "train/\\<class>/\\*" in page
    for name, command in COMMANDS.items():
        for parameter in command.params:
            shown = [f"`{option}" in GENERATE["pages"]()[f"{name}.md"] for option in parameter.opts if "-" in option]
            assert not any(shown) if getattr(parameter, "hidden", False) else all(shown)


def test_the_commands_index_names_every_command_and_exit_code() -> None:
    page = GENERATE["pages"]()["README.md"]
    assert re.findall(r"^\| \[(\w+)\]\(\1\.md\) \| .{20,} \|$", page, flags=re.M) == list(COMMANDS)
    codes = re.findall(r"^\| (\d+) \| .{20,} \|$", page, flags=re.M)
    assert codes == [str(int(code)) for code in ExitCode]


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda path: path.name)
def test_every_command_line_of_a_page_is_one_that_the_program_takes(page: Path) -> None:
    for line in "\n".join(commands(page.read_text(encoding="utf-8"))).replace(".venv/bin/", "").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["certtrain"]:
            assert COMMANDS[words[1]].make_context(words[1], words[2:]) is not None


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda path: path.name)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_page_of_presets_is_what_they_say() -> None:
    page = (DOCS / "presets.md").read_text(encoding="utf-8")
    assert page == GENERATE["presets_page"](), "run python docs/generate.py"
    assert re.findall(r"^\| \[`([\w.-]+)`\]\(\.\./presets/\1\.toml\) \|", page, flags=re.M) == preset_names()
    assert "| `cnn7` | 2/255 | `mtl-ibp` | 160 | CIFAR-10, ε = 2/255, by MTL-IBP; " in page


def test_the_page_of_fields_is_what_the_presets_code_says_of_each() -> None:
    page = (DOCS / "fields.md").read_text(encoding="utf-8")
    assert page == GENERATE["fields_page"](), "run python docs/generate.py"
    known = Counter(re.findall(r"^\| `(\w+)` \| [^|]* \| .{10,} \|$", page, flags=re.M))
    base = [section for _, section in GENERATE["SECTIONS"].values()] + [ObjectiveSection, AttackSection]
    fields = [name for section in base for name, field in section.model_fields.items() if not _is_section(field)]
    for section in OBJECTIVES.values():
        fields += section.model_fields.keys() - ObjectiveSection.model_fields.keys() - {"name"}
    for section in NETWORKS.values():
        fields += section.model_fields.keys() - {"name"}
    assert Counter(fields) - known == Counter(), "a field has no docstring"


def _is_section(field: FieldInfo) -> bool:
    """Whether a field of the top is a section, whose own fields are listed."""
    return field.annotation not in (str, int, float, bool) and "Section" in repr(field.annotation)


def test_a_thing_takes_the_same_time_on_every_page() -> None:
    """Times are of benchmarks/RESULTS.md; the prose may round them."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = {"README.md": readme, "quickstart.md": QUICKSTART, "durations.md": DURATIONS}
    for name, page in pages.items():
        assert re.search(r"23 s|0:23", page), name
        assert not re.search(r"(?:about 20|32) s|0:32|half a minute|five to ten minutes", page), name
    assert "23 s on two CPU cores" in load_preset("digits").description
    assert "4 min 55 s on two CPU cores" in load_preset("mnist-cpu").description
    assert not [page.name for page in DOCS.glob("*.md") if "five minutes" in page.read_text(encoding="utf-8")]
    for name in ("README.md", "durations.md"):
        assert {"23 s", "4 min 55 s", "6 min 49 s"} <= set(re.findall(r"\d+ min \d+ s|\b\d+ s\b", pages[name])), name


def test_the_times_on_the_page_of_durations_are_those_of_the_results() -> None:
    results = (ROOT / "benchmarks/RESULTS.md").read_text(encoding="utf-8")
    counts = Counter(_anchor(heading) for heading in re.findall(r"^#+ (.*)$", results, flags=re.M))
    headings = {f"{name}-{n}" if n else name for name, count in counts.items() for n in range(count)}
    links = re.findall(r"\(\.\./benchmarks/RESULTS\.md#([^)]+)\)", DURATIONS)
    assert len(links) > 5
    assert set(links) <= headings


def test_the_page_on_epsilon_prints_what_it_says_and_names_presets_of_its_radii(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (example,) = re.findall(r"^  ```python\n(.*?)^  ```$", EPSILON, flags=re.M | re.S)
    exec(compile(textwrap.dedent(example), "epsilon.md", "exec"), {})
    assert f"It prints {capsys.readouterr().out.strip()}:" in EPSILON
    rows = re.findall(r"^\| [\w-]+ \| ([^|]+) \| (`.*`) \|$", EPSILON, flags=re.M)
    assert len(rows) == 3
    for radii, names in rows:
        known = {parse_eps(radius) for radius in re.findall(r"[\d./]+(?<![.])", radii)}
        assert {load_preset(name).eps.max for name in re.findall(r"`([\w.-]+)`", names)} == known


def _anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# --- the other pages -------------------------------------------------------------------------------------


def _shape(text: str) -> list[str]:
    """The lines of a printed text without numbers, times, bars and spaces: what stays the same from run to run."""
    bare = [re.sub(r"[\d.]+ (µs|ms|s)$|[-\d.,:]+|[█▒░]{2,}|\s", "", line) for line in text.splitlines()]
    return [line for line in bare if line]


def test_the_shape_of_a_line_does_not_depend_on_how_fast_the_machine_is() -> None:
    assert _shape("inference  360  20  76.6 µs") == _shape("inference  360  20    1.25 ms") == ["inference"]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder in which the quickstart has been followed, without installs and downloads; what each block printed.

    Its first run has fewer epochs, by the option that the page explains later on.
    """
    folder = tmp_path_factory.mktemp("quickstart")
    shell = [block for block in commands(QUICKSTART) if not re.search("pip install|mnist|torchrun", block)]
    assert len(shell) == 6
    first, *others = shell
    shorter = first.replace("--preset digits", "--preset digits --epochs 15")
    with pytest.MonkeyPatch.context() as patch:  # the states of layers over fewer than 1000 images, which take long
        patch.setattr("certtrain.training.layer_diagnostics.STATE_EXAMPLES", 100)
        return folder, dict(zip(shell, _followed([shorter, *others], folder), strict=True))


@pytest.mark.slow
def test_the_quickstart_runs_and_prints_what_it_shows(quickstart: tuple[Path, dict[str, str]]) -> None:
    folder, printed = quickstart
    (shown,) = [block.text for block in blocks(QUICKSTART) if block.language == "text"]
    first = next(iter(printed.values()))
    assert set(_shape(shown)) <= set(_shape(first))
    for name in re.findall(r"^- `([\w./]+)`: ", QUICKSTART, flags=re.M):
        assert (folder / "runs/digits" / name).exists(), name
    results = json.loads((folder / "runs/digits/report.json").read_text())["results"]
    assert results["certified_accuracy"] > 0.7  # the page shows 78.89 %
    assert (folder / "runs/stopped/report.json").is_file()  # it was stopped, and went on to its end
    assert (folder / "runs/stopped/earlier/epochs-0010/model.safetensors").is_file()
    assert len(json.loads((folder / "runs/seeds/report.json").read_text())["runs"]) == 2


@pytest.mark.slow
def test_the_diagnostics_page_shows_tables_as_the_program_prints_them(quickstart: tuple[Path, dict[str, str]]) -> None:
    folder, printed = quickstart
    states, initial = [block.text for block in blocks(DIAGNOSTICS) if block.language == "text"]
    (seen,) = [text for block, text in printed.items() if "certtrain stats" in block]
    assert set(_shape(states)) <= set(_shape(seen))
    assert set(_shape(initial)) <= set(_shape(run("certtrain init --preset digits", folder)))


def test_the_diagnostics_page_names_each_threshold_with_its_value() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", DIAGNOSTICS, flags=re.M))
    assert tuple(rows) == findings.KINDS
    assert f"at least {findings.EXPLODING:,.0f}, " in rows["exploding"]
    assert f"at least {findings.EXPLODING_UNSTABLE:.0%} " in rows["exploding"]
    assert f"at least {findings.DEAD:.0%} " in rows["dead"]
    assert f"at least {findings.INACTIVE:.0%} " in rows["inactive"]
    assert f"at least {findings.UNSTABLE:.0%} " in rows["unstable"]
    assert rows["unbalanced"].endswith(f"below {findings.UNBALANCED}")
    at_start = re.findall(r"Before training only `(\w+)`, `(\w+)` and `(\w+)`", DIAGNOSTICS)
    assert at_start == [findings.AT_START]


def test_what_the_diagnostics_page_says_helps_are_fields_of_a_preset() -> None:
    preset = load_preset("digits").model_dump()
    for section, field in re.findall(r"`(eps|train|regularizer)\.(\w+)", DIAGNOSTICS):
        assert field in preset[section]


def test_the_quickstarts_own_preset_extends_a_shipped_one(tmp_path: Path) -> None:
    (own,) = [block for block in blocks(QUICKSTART) if block.language == "toml"]
    assert own.file is not None
    (tmp_path / own.file).write_text(own.text, encoding="utf-8")
    found, base = load_preset(str(tmp_path / own.file)), load_preset("digits")
    assert found.model_dump(exclude={"name", "description", "eps", "objective"}) == base.model_dump(
        exclude={"name", "description", "eps", "objective"}
    )
    assert (found.eps.max, found.objective.name, found.objective.alpha) == (0.05, "mtl-ibp", 0.2)


def test_the_objectives_page_names_every_objective_with_its_own_fields() -> None:
    table = OBJECTIVES_PAGE.partition("## The objectives")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `([\w-]+)` \| [^|]+ \| ([^|]*) \|", table, flags=re.M))
    assert set(rows) == set(OBJECTIVES) - {"custom"}
    common = {"name", *ObjectiveSection.model_fields}
    for name, fields in rows.items():
        assert set(re.findall(r"`(\w+)`", fields)) == set(OBJECTIVES[name].model_fields) - common, name
    costs = OBJECTIVES_PAGE.partition("## What a step costs")[2].partition("\n## ")[0]
    for name in rows:
        assert re.search(rf"^\|[^|]*`{name}`[^|]*\| .*F", costs, flags=re.M), name


def test_the_fields_that_the_objectives_page_names_are_those_of_a_preset() -> None:
    preset = load_preset("digits").model_dump()
    named = re.findall(r"`(eps|train|regularizer|data|objective)\.(\w+)", OBJECTIVES_PAGE)
    assert len(named) > 8
    for section, field in named:
        assert field in preset[section] or (section, field) == ("objective", "alpha"), (section, field)


def test_the_objectives_page_has_the_figures_that_the_presets_name() -> None:
    table = OBJECTIVES_PAGE.partition("## What to expect")[2].partition("\n## ")[0]
    for name in preset_names():
        comment = (ROOT / "presets" / f"{name}.toml").read_text(encoding="utf-8").replace("\n# ", " ")
        for figures in re.findall(r"Published: ([\d.]+)% natural, ([\d.]+)% certified", comment):
            assert " / ".join(figures) in table, name


def test_the_certificates_pages_name_every_verdict_method_and_assumption() -> None:
    verdicts = re.findall(r"^\| `(\w+)` \|", CERTIFICATES, flags=re.M)
    assert sorted(verdicts) == sorted(VERDICTS)
    methods = re.findall(r"^- `([\w-]+)`, \w+ bounds:", METHODS_PAGE, flags=re.M)
    assert methods == list(METHODS)
    section = CERTIFICATES.partition("## In which arithmetic")[2].partition("\n## ")[0]
    arithmetics = re.findall(r"^- `(\w+)`(?:, the default)?:", section, flags=re.M)
    assert sorted(arithmetics) == sorted(ARITHMETICS)
    assumed = " ".join(assumption for found in ARITHMETICS.values() for assumption in found.assumptions)
    for words in ("Winograd or FFT", "fused multiply-add", "flushed to zero", "allow_bf16_reduced_precision_reduction"):
        assert words in assumed
        assert words in CERTIFICATES
    accuracies = re.findall(r"^\| ([\w, ]+) \| .*?(\d+) units of .*$", section, flags=re.M)
    units = {name.lower(): int(number) for names, number in accuracies for name in names.split(", ")}
    curved = [record for record in ACTIVATIONS.values() if record.accuracy.statement is not None]
    assert units == {record.layer.__name__.lower(): record.accuracy.units for record in curved}
    assert "[0, 1]" in PIXEL_INPUTS
    assert "stays in [0, 1]" in CERTIFICATES


def test_the_page_of_certificate_files_names_every_field() -> None:
    header, record = (
        re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| ([^|]*) \|", part, flags=re.M)))
        for part in CERTIFICATE_FILES.partition("## The file")[2].split("Then comes a record")
    )
    assert header == list(Header.model_fields)
    assert record == list(Record.model_fields)
    seal = CERTIFICATE_FILES.partition("The last line is the seal")[2]
    assert all(f"`{name}`" in seal for name in Seal.model_fields)


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([\w./]+\.md)\)", index))
    assert linked == {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} - {"README.md"}


def test_the_answers_name_each_variable_that_leaves_waiting_to_the_user():
    text = (ROOT / "docs/faq.md").read_text(encoding="utf-8")
    assert [name for name in (*threads.CHOICES, "OMP_NUM_THREADS") if f"`{name}" not in text] == []
