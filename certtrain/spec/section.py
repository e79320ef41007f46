"""What the parts of a preset have in common; free of torch."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

LARGEST_SIZE = 2**20  # no network is wider; a hostile file may say so
Positive = Annotated[int, Field(ge=1, le=LARGEST_SIZE)]


class Section(BaseModel):
    """What all sections share: values do not change, and a misspelt field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
