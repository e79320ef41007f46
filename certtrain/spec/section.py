"""The base class of all parts of a preset; without torch."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

LARGEST_SIZE = 2**20  # more than in any network that can be trained; a hostile file may have more
Positive = Annotated[int, Field(ge=1, le=LARGEST_SIZE)]


class Section(BaseModel):
    """The base of all sections: its values cannot be changed, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
