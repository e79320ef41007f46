"""A deadline that is over after a number of questions, so that tests do not depend on the clock."""

from itertools import count

from certtrain.runtime.deadline import Deadline


class CountedDeadline(Deadline):
    """Over when it is asked once more than `most` times; with `limited` the parts of the work are small as well."""

    def __init__(self, most: int, *, limited: bool = False) -> None:
        super().__init__(1e300 if limited else float("inf"))
        object.__setattr__(self, "numbers", count())
        object.__setattr__(self, "most", most)

    def over(self) -> bool:
        """Count this question."""
        return bool(next(self.numbers) >= self.most)

    numbers: "count[int]"
    most: int
