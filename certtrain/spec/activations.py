"""The activations as data: a section for each record in `certtrain.bounds.activations`."""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from certtrain.spec.layer_section import ElementwiseSection, Number, PositiveNumber


class ReLUSection(ElementwiseSection):
    type: Literal["ReLU"]


class LeakyReLUSection(ElementwiseSection):
    type: Literal["LeakyReLU"]
    negative_slope: float = Field(0.01, ge=0)


class SigmoidSection(ElementwiseSection):
    type: Literal["Sigmoid"]


class TanhSection(ElementwiseSection):
    type: Literal["Tanh"]


class GELUSection(ElementwiseSection):
    type: Literal["GELU"]
    approximate: Literal["none"] = "none"


class SiLUSection(ElementwiseSection):
    type: Literal["SiLU"]


class SoftplusSection(ElementwiseSection):
    type: Literal["Softplus"]
    beta: PositiveNumber = 1.0
    threshold: Annotated[float, Field(ge=-80, le=80)] = 20.0


class ELUSection(ElementwiseSection):
    type: Literal["ELU"]
    alpha: PositiveNumber = 1.0


class HardtanhSection(ElementwiseSection):
    type: Literal["Hardtanh"]
    min_val: Number = -1.0
    max_val: Number = 1.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_val >= self.max_val:
            raise ValueError("min_val must be below max_val")
        return self


class ReLU6Section(ElementwiseSection):
    type: Literal["ReLU6"]


class ClampSection(ElementwiseSection):
    type: Literal["Clamp"]
    min: Number | None = None
    max: Number | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("it has neither min nor max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min must not be above max")
        return self


AnyActivation = (
    ReLUSection
    | LeakyReLUSection
    | SigmoidSection
    | TanhSection
    | GELUSection
    | SiLUSection
    | SoftplusSection
    | ELUSection
    | HardtanhSection
    | ReLU6Section
    | ClampSection
)
ACTIVATION_SECTIONS: tuple[type[ElementwiseSection], ...] = get_args(AnyActivation)
