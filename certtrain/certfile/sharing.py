"""One verification shared out among several processes, on one machine or on many.

The examples of a round differ a thousandfold in cost. So each process takes the next few of them when it gets free, by
an atomic counter in torch.distributed's store, and sends their results to rank 0, which keeps and writes them. The
parts get smaller as the round goes on (guided self-scheduling, Polychronopoulos and Kuck 1987), so that all processes
end at nearly the same time. No process waits for another within a round.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist

from certtrain import errors
from certtrain.certfile.lines import Header, Record, differences
from certtrain.certfile.reading import result_of
from certtrain.certfile.writing import record_of
from certtrain.data import ImageSet
from certtrain.errors import CerttrainError, RunError, SoundnessError
from certtrain.verification.results import ExampleResult
from certtrain.verification.shares import Receive

LOOK_AFTER = 0.1  # seconds between two looks at the store
REST = 0.02  # seconds between two looks while there is nothing else to do
PATIENCE = 3.0  # seconds that rank 0 waits for the results of others when it is stopped
PARTS_LEFT = 2  # a part is this share of what is left for each process


def handed_out(examples: int, size: int, ranks: int) -> list[range]:
    """The parts of a round's examples, in the order in which they are handed out; none has more than `size`."""
    parts, start = list[range](), 0
    while start < examples:
        count = max(1, min(size, -(-(examples - start) // (PARTS_LEFT * ranks))))
        parts.append(range(start, min(start + count, examples)))
        start = parts[-1].stop
    return parts


@dataclass
class Shared:
    """The share of one of `size` processes in a verification of `images`. Rank 0 keeps the results.

    store: of torch.distributed, which all processes reach. ended: the ranks that rank 0 need not wait for, since they
        ended or seem to have ended. What one of them sends after its round is over is ignored.
    """

    store: Any
    rank: int
    size: int
    images: ImageSet
    ended: Callable[[], frozenset[int]] = frozenset
    tasks: int = field(default=0, init=False)
    rounds: int = field(default=0, init=False)
    taken: int = field(default=0, init=False)  # messages that rank 0 knows of
    waiting: list[int] = field(default_factory=list, init=False)  # of these, those that are not here yet
    finished: set[int] = field(default_factory=set, init=False)  # ranks that finished this round
    reported: set[int] = field(default_factory=set, init=False)  # examples of this round that others took
    over: bool = field(default=True, init=False)  # whether rank 0 takes no more results of this round
    handed: list[list[int]] = field(default_factory=list, init=False)
    receive: Receive = field(default=lambda results: None, init=False)
    last_look: float = field(default=0.0, init=False)
    stop_requested: bool = field(default=False, init=False)

    def agree(self, header: Header) -> None:
        """Raise RunError if this process has another task than rank 0, as with other files on another machine."""
        self.tasks += 1
        key = f"task/{self.tasks}"
        if self.rank == 0:
            self.store.set(key, header.model_dump_json())
            return
        self._wait_for(key)
        if self.stop_requested:
            return
        if other := differences(Header.model_validate_json(self.store.get(key)), header):
            raise RunError(f"rank {self.rank} has another task than rank 0: {'; '.join(other)}")

    # --- a round, as in `Shares` ---

    def begin(self, examples: list[int], known: dict[int, ExampleResult], receive: Receive) -> list[int]:
        """As `Shares`."""
        self.rounds, self.receive = self.rounds + 1, receive
        self.finished, self.reported, self.over = set(), set(), False
        key = f"round/{self.rounds}"
        if self.rank == 0:
            records = [self._record(known[number]) for number in examples if number in known]
            self.store.set(key, json.dumps({"examples": examples, "records": records}))
        else:
            self._wait_for(key)
            if self.stop_requested:
                return []
            found = json.loads(self.store.get(key))
            examples = found["examples"]
            known |= {result.index: result for result in map(self._result, found["records"])}
        return examples

    def parts(self, examples: Sequence[int], size: int) -> Iterator[list[int]]:
        """As `Shares`."""
        parts = handed_out(len(examples), size, self.size)
        self.handed = [[examples[place] for place in part] for part in parts]
        while (number := self.store.add(f"next/{self.rounds}", 1) - 1) < len(self.handed):
            if self.rank == 0:
                self.reported.update(self.handed[number])
            yield self.handed[number]
            self._post({"took": number})

    def send(self, results: list[ExampleResult]) -> None:
        """As `Shares`."""
        self._post({"records": [self._record(result) for result in results]})

    def end(self, stop: Callable[[], bool]) -> list[int]:
        """As `Shares`."""
        if self.rank:
            self._post({"finished": self.rounds})
            return []
        stopped_at: float | None = None
        while self._lost() and len(self.finished | self.ended()) < self.size - 1:
            self._collect()
            if stop():
                self.store.set("stop", "1")
                stopped_at = stopped_at or time.monotonic()
                if time.monotonic() - stopped_at > PATIENCE:
                    break
            time.sleep(REST)
        self._collect()
        self.over = True
        return [] if stopped_at else self._lost()

    def _lost(self) -> list[int]:
        """The examples of this round that were handed out and are not done, as far as rank 0 knows.

        Without any there is nothing to wait for: a process that has still to start, or to see the end of the round,
        holds none.
        """
        return [number for part in self.handed for number in part if number not in self.reported]

    def stopped(self) -> bool:
        """As `Shares`; on rank 0 it takes the results that others have sent."""
        if time.monotonic() - self.last_look < LOOK_AFTER:
            return self.stop_requested
        if self.rank == 0:
            self._collect()
        else:
            self.stop_requested = self.stop_requested or self._has("stop")
        self.last_look = time.monotonic()
        return self.stop_requested

    # --- messages ---

    def fail(self, error: CerttrainError) -> None:
        """Let rank 0 raise the error of this process."""
        self._post({"error": [type(error).__name__, str(error)]})

    def _post(self, message: dict[str, Any]) -> None:
        """Send a message to rank 0."""
        if self.rank == 0:
            return
        try:
            number = self.store.add("messages", 1) - 1
            self.store.set(f"message/{number}", json.dumps(message | {"rank": self.rank, "round": self.rounds}))
        except dist.DistError as error:
            raise RunError(f"rank {self.rank} cannot reach rank 0 any more: {error}") from error

    def _collect(self) -> None:
        """Take the messages of the other processes. Raises the error that one of them raised."""
        self.last_look = time.monotonic()  # first, since receiving results may ask again
        count = self.store.add("messages", 0)
        self.waiting += range(self.taken, count)
        self.taken = count
        for number in list(self.waiting):
            if self._has(key := f"message/{number}"):
                self.waiting.remove(number)
                message = json.loads(self.store.get(key))
                self.store.delete_key(key)
                self._read(message)

    def _read(self, message: dict[str, Any]) -> None:
        if "error" in message:
            raise _error(*message["error"])
        if self.over or message["round"] != self.rounds:
            return
        if "records" in message:
            self.receive([self._result(record) for record in message["records"]])
        elif "took" in message:
            self.reported.update(self.handed[message["took"]] if self.handed else [])
        elif "finished" in message:
            self.finished.add(message["rank"])

    def _has(self, key: str) -> bool:
        try:
            return bool(self.store.check([key]))
        except dist.DistError as error:
            raise RunError(f"rank {self.rank} cannot reach rank 0 any more: {error}") from error

    def _wait_for(self, key: str) -> None:
        """Wait until rank 0 has set the key, or asks for a stop."""
        while not self._has(key) and not self.stopped():
            time.sleep(REST)

    def _record(self, result: ExampleResult) -> dict[str, Any]:
        return record_of(result, self.images).model_dump(mode="json")

    def _result(self, record: dict[str, Any]) -> ExampleResult:
        found = Record.model_validate_json(json.dumps(record))
        if found.sha256 != self.images.example_fingerprint(found.index):
            raise RunError(f"a result for example {found.index} of another process is about another image")
        return result_of(found, self.images.input_shape)


def _error(name: str, text: str) -> CerttrainError:
    kind = getattr(errors, name, RunError)
    return SoundnessError(text) if kind is SoundnessError else kind(text)
