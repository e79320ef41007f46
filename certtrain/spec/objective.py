"""The training objectives by name, each with its own fields; without torch.

L is the cross-entropy of margins, m the lower bounds of the margins over the box, x′ an attacked input. The formulas
are in `training/objectives/`, one module for each family.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, model_validator

from certtrain.spec.section import Positive, Section


class AttackSection(Section):
    """The attack in a training step: steps along the sign of the loss's gradient (Madry et al. 2018)."""

    radius: float = Field(1.0, gt=0)
    """Radius of the box that is attacked, as a multiple of the step's ε; a latent box is attacked as it is."""
    steps: Positive = 1
    """Number of steps from each start."""
    restarts: Positive = 1
    """Number of starts; the input with the largest loss is kept."""
    step_size: float | None = Field(None, gt=0)
    """Length of a step in half widths of the box, so that 2 leads from anywhere to a corner; by default the larger of
    0.25 and 2/steps."""
    decay: float = Field(1.0, gt=0, le=1)
    """Factor of the step's length after every `decay_every` steps."""
    decay_every: Positive = 10
    """Number of steps after which the length decays."""
    start: float = Field(1.0, ge=0, le=1)
    """The share of the box, around its centre, from which the starts are drawn; 0 starts at the centre."""
    keep: Literal["last", "best"] = "last"
    """last: the input after the last step. best: the one with the largest loss of all, for one more pass."""


class ObjectiveSection(Section):
    """The fields of every objective."""

    natural_share: float = Field(0.0, ge=0, le=1)
    """Share of the natural loss in the loss, beside the objective's own, while ε is above zero."""
    natural_share_end: float | None = Field(None, ge=0, le=1)
    """Share of the natural loss at the end of the ramp, reached in proportion to ε; by default `natural_share`."""

    @model_validator(mode="before")
    @classmethod
    def _whole_attacks(cls, values: Any) -> Any:
        """An attack that is given in part has in the other fields what the objective has by default."""
        if not isinstance(values, Mapping):
            return values
        given = {name: value for name, value in values.items() if isinstance(value, Mapping)}
        defaults = {name: field.default for name, field in cls.model_fields.items() if name in given}
        return dict(values) | {
            name: default.model_dump() | dict(given[name])
            for name, default in defaults.items()
            if isinstance(default, AttackSection)
        }

    def share_at(self, eps: float, eps_max: float) -> float:
        """The share of the natural loss at ε > 0."""
        end = self.natural_share if self.natural_share_end is None else self.natural_share_end
        return self.natural_share + (end - self.natural_share) * eps / eps_max


class AttackedObjective(ObjectiveSection):
    """The fields of the objectives that attack."""

    attack: AttackSection = AttackSection()
    """The attack on the input, a section of its own."""


class IBPSection(ObjectiveSection):
    """L(m) with m by intervals (Gowal et al. 2018)."""

    name: Literal["ibp"]


class CrownIBPSection(ObjectiveSection):
    """L(m) with m by intervals and linear bounds, which fade out with the warm-up (Zhang et al. 2020)."""

    name: Literal["crown-ibp"]
    loss_fusion: bool = True
    """Bound the loss itself by one backsubstitution, instead of the margin of every class (Xu et al. 2020)."""


class PGDSection(AttackedObjective):
    """L(x′): adversarial training, without bounds (Madry et al. 2018)."""

    name: Literal["pgd"]


class ExpressiveSection(AttackedObjective):
    """The fields of the expressive losses (De Palma et al. 2024)."""

    alpha: float = Field(0.5, ge=0, le=1)
    """The weight of the bounds: 1 is IBP, 0 adversarial training. The smaller ε, the smaller a good α."""


class MTLIBPSection(ExpressiveSection):
    """α L(m) + (1 − α) L(x′)."""

    name: Literal["mtl-ibp"]


class CCIBPSection(ExpressiveSection):
    """L(α m + (1 − α) m(x′))."""

    name: Literal["cc-ibp"]


class ExpIBPSection(ExpressiveSection):
    """L(m)^α L(x′)^(1 − α)."""

    name: Literal["exp-ibp"]


class SmallBox(AttackedObjective):
    """The fields of the objectives that propagate a small box around an attacked input (Müller et al. 2023)."""

    attack: AttackSection = AttackSection(steps=8)
    subselection_ratio: float = Field(0.4, gt=0, le=1)
    """λ, the half width of the small box as a multiple of the whole box's."""
    relu_shrinkage: float = Field(0.0, ge=0, lt=1)
    """s: the upper bounds of unstable ReLUs are multiplied by 1 − s."""


class SABRSection(SmallBox):
    """L(m) over the small box (Müller et al. 2023)."""

    name: Literal["sabr"]


class LatentAttack(ObjectiveSection):
    """The fields of the objectives that attack in a latent box (Mao et al. 2023)."""

    split: str = "flatten"
    """The layer after which the network is split: intervals before it, an attack in their box after it. "input" leaves
    the whole network to the attack."""
    latent_attack: AttackSection = AttackSection(steps=10)
    """The attack in the latent box; for each class it finds an input of the second part with a small margin."""
    gradient_scale: float = Field(4.0, gt=0)
    """Factor of the gradient that comes by way of the attack, beside that of the bounds."""
    relu_shrinkage: float = Field(0.0, ge=0, lt=1)
    """s: the upper bounds of unstable ReLUs are multiplied by 1 − s."""
    link: float = Field(0.5, gt=0, le=0.5)
    """The share of the latent box's width, at each end, in which a latent input passes its gradient to that end."""


class TAPSSection(LatentAttack):
    """L(m of latent inputs) L(m by intervals) (Mao et al. 2023)."""

    name: Literal["taps"]


class STAPSSection(LatentAttack, SmallBox):
    """As TAPS, from the small box of SABR (Mao et al. 2023)."""

    name: Literal["staps"]


class CustomSection(ObjectiveSection):
    """A user's own objective: a class in a Python file, made with the arguments when a run begins and is resumed."""

    name: Literal["custom"]
    source: str = Field(pattern=r"(?s)^.+\.py:[^\W\d]\w*$")
    """A Python file and a class in it, like "my.py:MyObjective"."""
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments for the class."""
    attack: AttackSection | None = None
    """The settings of an attack, which the class gets as its argument `attack`."""
    sha256: str | None = None
    """The hash of the file, written into the preset of a run when it begins."""


def described_objective(section: ObjectiveSection) -> str:
    """The name, the objective's own numbers and what differs from the defaults, in one line.

    Like "mtl-ibp: alpha 0.1, attack (steps 3)".
    """
    changed, everything = section.model_dump(exclude_defaults=True), section.model_dump(exclude_none=True)
    own = {name for name, value in everything.items() if name not in ObjectiveSection.model_fields and value != {}}
    own -= {name for name in own if isinstance(everything[name], dict)}
    values = {name: changed.get(name, everything.get(name)) for name in everything if name in own | changed.keys()}
    name = values.pop("name")
    return f"{name}: {_words(values)}" if values else str(name)


def _words(values: dict[str, Any]) -> str:
    """Each field with its value; those of a section in brackets."""
    return ", ".join(
        f"{name.replace('_', ' ')} ({_words(value)})"
        if isinstance(value, dict)
        else f"{name.replace('_', ' ')} {value}"
        for name, value in values.items()
    )


AnyObjective = Annotated[
    IBPSection
    | CrownIBPSection
    | PGDSection
    | MTLIBPSection
    | CCIBPSection
    | ExpIBPSection
    | SABRSection
    | TAPSSection
    | STAPSSection
    | CustomSection,
    Field(discriminator="name"),
]
OBJECTIVES: dict[str, type[ObjectiveSection]] = {
    "ibp": IBPSection,
    "crown-ibp": CrownIBPSection,
    "pgd": PGDSection,
    "mtl-ibp": MTLIBPSection,
    "cc-ibp": CCIBPSection,
    "exp-ibp": ExpIBPSection,
    "sabr": SABRSection,
    "taps": TAPSSection,
    "staps": STAPSSection,
    "custom": CustomSection,
}
