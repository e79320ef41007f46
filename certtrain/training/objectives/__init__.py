"""The training objectives by name: one module for each family."""

from collections.abc import Callable
from typing import Any

from certtrain.bounds.graph import LayerGraph
from certtrain.spec.objective import ExpressiveSection, ObjectiveSection, SmallBox
from certtrain.training.objectives.adversarial import Adversarial, Expressive, Mix, cc_ibp, exp_ibp, mtl_ibp
from certtrain.training.objectives.base import Objective
from certtrain.training.objectives.custom import custom_objective
from certtrain.training.objectives.interval import IBP, CrownIBP
from certtrain.training.objectives.sabr import SABR, SmallBoxes
from certtrain.training.objectives.taps import TAPS


def objective_of(section: ObjectiveSection, graph: LayerGraph) -> Objective:
    """The objective that a preset's section describes, for a network.

    Raises UnsupportedLayer if the network cannot be split where the section says, and PresetError for a user's own
    objective that cannot be made.
    """
    name: str = section.name  # type: ignore[attr-defined]  # every section of a preset has one
    return _MAKERS[name](section, graph)


def _expressive(mix: Mix) -> Callable[[ExpressiveSection, LayerGraph], Objective]:
    """A mix whose weight leaves only one of its two losses is that loss alone, without the other's passes."""

    def make(section: ExpressiveSection, graph: LayerGraph) -> Objective:
        if section.alpha == 1:
            return IBP()
        if section.alpha == 0:
            return Adversarial(graph, section.attack)
        return Expressive(graph, section.attack, section.alpha, mix)

    return make


def _small_boxes(section: SmallBox, graph: LayerGraph) -> SmallBoxes:
    return SmallBoxes(graph, section.attack, section.subselection_ratio)


def _sabr(section: SmallBox, graph: LayerGraph) -> Objective:
    """The small box of λ = 1 is the whole box, wherever the attack ends."""
    if section.subselection_ratio == 1 and section.relu_shrinkage == 0:
        return IBP()
    return SABR(_small_boxes(section, graph), section.relu_shrinkage)


_MAKERS: dict[str, Callable[[Any, LayerGraph], Objective]] = {
    "ibp": lambda section, graph: IBP(),
    "crown-ibp": lambda section, graph: CrownIBP(section.loss_fusion),
    "pgd": lambda section, graph: Adversarial(graph, section.attack),
    "mtl-ibp": _expressive(mtl_ibp),
    "cc-ibp": _expressive(cc_ibp),
    "exp-ibp": _expressive(exp_ibp),
    "sabr": _sabr,
    "taps": lambda section, graph: TAPS(graph, section),
    "staps": lambda section, graph: TAPS(graph, section, _small_boxes(section, graph)),
    "custom": custom_objective,
}
