"""Several seeds of one preset, trained one after the other, with one report."""

from certtrain.formats import count_of
from certtrain.reports.comparison import write_comparison
from certtrain.runs.comparing import RunComparison, read_comparison
from certtrain.runs.history import REPORT
from certtrain.runs.seeds import PAGE, SeedRuns
from certtrain.storage import write_json
from certtrain.training.api import resume_run, start_run
from certtrain.training.context import DEFAULT_CONTEXT, RunContext


def train_seeds(runs: SeedRuns, context: RunContext = DEFAULT_CONTEXT) -> RunComparison | None:
    """Train and verify each seed whose run is not finished, then write the report of all; None if it is stopped.

    A run that was stopped is resumed. Raises a CerttrainError as `start_run`; the finished runs stay.
    """
    context = context.resolved()
    context.group.on_leader(runs.write)
    for seed in runs.seeds:
        folder = runs.folder(seed)
        if context.group.on_leader((folder / REPORT).is_file):
            continue
        begun = context.group.on_leader((folder / "preset.json").is_file)
        report = resume_run(folder, context) if begun else start_run(runs.preset_of(seed), folder, context)
        if context.group.agree(report is None):
            return None
    return context.group.on_leader(lambda: _report(runs))


def _report(runs: SeedRuns) -> RunComparison:
    compared = read_comparison([runs.folder(seed) for seed in runs.seeds])
    write_json(runs.path / REPORT, {"preset": runs.preset.name, "seeds": list(runs.seeds), **compared.to_dict()})
    write_comparison(compared, runs.path / PAGE, f"{runs.preset.name}, {count_of(len(runs.seeds), 'seed')}")
    return compared
