"""Who takes which examples through a round of a verification: one process all of them, or several each a part."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from certtrain.verification.results import ExampleResult

Receive = Callable[[list[ExampleResult]], None]


class Shares(Protocol):
    """The share of this process in each round.

    Every process calls `begin`, `parts` and `end` once a round, in this order.
    """

    def begin(self, examples: list[int], known: dict[int, ExampleResult], receive: Receive) -> list[int]:
        """The numbers of the examples of the next round, which all processes share; `known` gets their results so far.

        receive: called with the results of other processes.
        """

    def parts(self, examples: Sequence[int], size: int) -> Iterator[list[int]]:
        """Parts of the examples for this process, as it gets free; `size` is the batch size of the round."""

    def send(self, results: list[ExampleResult]) -> None:
        """Give new results to the process that keeps them."""

    def end(self, stop: Callable[[], bool]) -> list[int]:
        """Wait for the others, unless `stop` returns True; gives the examples of processes that ended early."""

    def stopped(self) -> bool:
        """Whether another process asks for a stop. It is called several times a second."""


class Alone:
    """The share of a process that has no others beside it: everything."""

    def begin(self, examples: list[int], known: dict[int, ExampleResult], receive: Receive) -> list[int]:
        """As `Shares`."""
        return examples

    def parts(self, examples: Sequence[int], size: int) -> Iterator[list[int]]:
        """As `Shares`."""
        yield list(examples)

    def send(self, results: list[ExampleResult]) -> None:
        """As `Shares`."""

    def end(self, stop: Callable[[], bool]) -> list[int]:
        """As `Shares`."""
        return []

    def stopped(self) -> bool:
        """As `Shares`."""
        return False


ALONE = Alone()
