"""A user's own objective, from a Python file."""

from torch import Tensor

from certtrain.bounds.graph import LayerGraph
from certtrain.errors import PresetError, RunError
from certtrain.runtime.user_code import USER_ERRORS, UserCallable, call, callable_from, error_text, user_code
from certtrain.spec.objective import CustomSection
from certtrain.spec.preset import Preset
from certtrain.training.objectives.base import Objective, RobustLosses
from certtrain.training.passes import Passes, SignedAscent


def with_source_hash(preset: Preset) -> Preset:
    """The preset with the hash of the file of its own objective, if it has one: the run needs that file to its end.

    Raises PresetError if the file cannot be run.
    """
    section = preset.objective
    if not isinstance(section, CustomSection):
        return preset
    with user_code():
        maker = callable_from(section.source, PresetError)
    return preset.model_copy(update={"objective": section.model_copy(update={"sha256": maker.sha256})})


def custom_objective(section: CustomSection, graph: LayerGraph) -> Objective:
    """The objective that the user's class makes, called with the network's layers and the section's arguments.

    Runs the user's file. Raises PresetError, which says what is wrong with it, and RunError if it is not the file that
    the run began with.
    """
    with user_code():
        maker = callable_from(section.source, PresetError)
        if section.sha256 not in (None, maker.sha256):
            raise RunError(
                f"{section.source.rpartition(':')[0]} has changed since the run began; restore it, or start a new run"
            )
        attack = {} if section.attack is None else {"attack": section.attack}
        made = call(maker, attack | section.arguments, PresetError, (graph,))
    if not isinstance(made, Objective):
        raise PresetError(f"{maker.title} returns {made!r}, which is not a certtrain.Objective")
    return UserObjective(made, maker)


class UserObjective(Objective):
    """A user's objective, whose errors name its file."""

    def __init__(self, objective: Objective, maker: UserCallable) -> None:
        self.objective, self.title = objective, maker.title
        self.attacks, self.fades = objective.attacks, objective.fades

    def prepare(self, passes: Passes, ascent: SignedAscent) -> tuple[Tensor, ...]:
        """As `Objective`. Raises PresetError."""
        try:
            return tuple(found.detach() for found in self.objective.prepare(passes, ascent))
        except USER_ERRORS as error:
            raise PresetError(f"{self.title}.prepare raises {error_text(error)}") from error

    def robust(self, passes: Passes, found: tuple[Tensor, ...]) -> RobustLosses:
        """As `Objective`. Raises PresetError."""
        try:
            robust = self.objective.robust(passes, found)
        except USER_ERRORS as error:
            raise PresetError(f"{self.title}.robust raises {error_text(error)}") from error
        self._check(robust, len(passes.labels))
        return robust

    def _check(self, robust: RobustLosses, examples: int) -> None:
        values = {"losses": robust.losses, **robust.measures}
        wrong = [name for name, value in values.items() if tuple(value.shape) != (examples,)]
        if wrong:
            shape = tuple(values[wrong[0]].shape)
            raise PresetError(f"{self.title}.robust gives {wrong[0]} of shape {shape}, and must give ({examples},)")
