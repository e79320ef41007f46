"""A deadline that is counted in looks, so that tests do not depend on the clock."""

from itertools import count

from certtrain.runtime.deadline import Deadline


class Looks(Deadline):
    """It is over from the look with the number `most` on, counted from 0; with `limited` parts are small as well."""

    def __init__(self, most: int, *, limited: bool = False) -> None:
        super().__init__(1e300 if limited else float("inf"))
        object.__setattr__(self, "numbers", count())
        object.__setattr__(self, "most", most)

    def over(self) -> bool:
        """Look once."""
        return bool(next(self.numbers) >= self.most)

    numbers: "count[int]"
    most: int
