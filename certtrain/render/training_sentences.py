"""The sentences that both views of a training use, for its start, its verification, its stop and its end."""

from certtrain.formats import about, clock, count_of, percent, roughly
from certtrain.runs.runfiles import tracking_record
from certtrain.spec.epsilon import format_eps
from certtrain.spec.layers import Graph
from certtrain.training.events import Finished, Started, Stopped, Verifying

COMPILING = "compiling the step"


def measure_text(name: str, value: float) -> str:
    """A measure of the objective's own, like "adversarial 43.1%" or "latent loss 1.234"."""
    words = name.removesuffix("_accuracy").replace("_", " ")
    return f"{words} {percent(value, 1)}" if name.endswith("_accuracy") else f"{words} {value:.3f}"


def started_sentence(event: Started) -> str:
    """The preset, the data, the network and where the run is."""
    preset = event.preset
    network = preset.model.title if isinstance(preset.model, Graph) else preset.model.name
    begin = f"resumed at step {event.step:,}" if event.step else "new run"
    return (
        f"{preset.name}: {preset.data.name} ({count_of(event.examples, 'example')}), {network} with "
        f"{event.parameters:,} parameters, {preset.objective.name}, ε = {format_eps(preset.eps.max)}, "
        f"seed {preset.seed}, {event.device}; {begin} in {event.folder}"
    )


def verifying_sentence(event: Verifying) -> str:
    """What is verified."""
    return f"verifying on the {event.split} set"


def stopped_sentence(event: Stopped) -> str:
    """Why and where the run stopped, and the command that resumes it."""
    options = "" if event.data_dir is None else f" --data-dir {event.data_dir}"
    options += " --tensorboard" if (event.folder / "tensorboard").is_dir() else ""
    options += "".join(f" --{name}" for name in tracking_record(event.folder))
    return (
        f"stopped ({event.reason}) at step {event.step:,} of {event.steps:,}; {_left(event)}"
        f"resume with: certtrain train --resume {event.folder}{options}"
    )


def _left(event: Stopped) -> str:
    if event.step == event.steps:
        return "only the verification is left; "
    if event.seconds_left is None:
        return ""
    left = roughly(event.seconds_left) if event.estimated else about(event.seconds_left)
    return f"about {left} left; "


def finished_sentence(event: Finished) -> str:
    """How long the training took, and the files that it wrote."""
    page = "" if event.page is None else f"; report: {event.page}"
    return f"trained in {clock(event.seconds)}; model: {event.model}{page}"
