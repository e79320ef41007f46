"""The model card of a run: a README.md with metadata in YAML, as model hubs show it, from the files in its folder."""

from pathlib import Path

from certtrain.errors import RunError
from certtrain.formats import attack_words
from certtrain.reports.pages import CellValue, render_page, shown_value
from certtrain.reports.report import run_facts
from certtrain.runs.history import REPORT, Results, Run, read_run
from certtrain.runs.runfiles import MODEL
from certtrain.spec.epsilon import exact_eps, format_eps
from certtrain.storage import write_atomic

CARD = "README.md"
TAGS = ("image-classification", "certified-robustness", "adversarial-robustness", "interval-bound-propagation")
HUB_NAMES = {  # of the data sets that the Hugging Face hub has, by certtrain's
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "tinyimagenet": "zh-plus/tiny-imagenet",
}


def write_card(run_folder: Path, path: Path) -> None:
    """Write the card of the finished run in `run_folder` to `path`, completely or not at all.

    The same files give the same bytes. Raises RunError, PresetError or StorageError.
    """
    write_atomic(path, card_text(read_run(run_folder), run_folder).encode())


def card_text(run: Run, run_folder: Path) -> str:
    """The card as text. Raises RunError if the run is not finished."""
    if run.report is None:
        raise RunError(f"the run in {run_folder} has no {REPORT}, from which a card is made; it is not finished")
    found = run.report.results
    return render_page(
        "card.md",
        run=run,
        results=found,
        model_file=MODEL,
        tags=TAGS,
        hub_name=HUB_NAMES.get(found.dataset),
        figures=_figures(found),
        exact_eps=exact_eps(found.eps),
        facts=[(name, _cell(value)) for name, value in run_facts(run)],
        shape=run.weights.input_shape if run.weights else (),
        class_names=run.weights.class_names if run.weights else (),
    )


def _figures(found: Results) -> list[tuple[str, float, str]]:
    """The accuracies: name, share of one, and what each is."""
    eps = format_eps(found.eps)
    attack = attack_words(found.attack) if found.attack.get("steps") else "no attack"
    return [
        ("natural accuracy", found.natural_accuracy, "no perturbation"),
        (f"accuracy under attack, ε = {eps}", found.attacked_accuracy, f"upper limit of robust accuracy; {attack}"),
        (
            f"certified accuracy, ε = {eps}",
            found.certified_accuracy,
            f"lower limit of robust accuracy; proved by {found.method} for {found.arithmetic} arithmetic",
        ),
    ]


def _cell(value: CellValue) -> str:
    """A value for a table in Markdown."""
    return " ".join(shown_value(value).split()).replace("|", "\\|")
