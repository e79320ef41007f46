"""Running instances, each by `certtrain decide` in a process of its own.

If a process crashes, needs more memory than there is, or does not end in time, that is
the result of its instance alone.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from certtrain.competition.answers import read_answer
from certtrain.competition.instances import Instance
from certtrain.competition.results import InstanceResult
from certtrain.interchange.packed import is_packed
from certtrain.spec.choices import PropertyMethodName

OVERTIME = 10.0  # seconds after its limit when a process is ended; `decide` itself ends within about one
POLL = 0.02  # seconds between two looks at the processes


@dataclass(frozen=True)
class Options:
    """How each instance is decided: options of `certtrain decide`, and the threads of a process; None: its default.

    timeout: the most seconds of an instance, if its list allows more.
    """

    method: PropertyMethodName = "complete"
    timeout: float | None = None
    memory: int | None = None
    pgd_steps: int = 20
    pgd_restarts: int = 1
    seed: int = 0
    threads: int | None = None

    def words(self) -> list[str]:
        """As words of the command line, without the time limit and the threads."""
        values = {name: value for name, value in asdict(self).items() if name not in ("timeout", "threads")}
        return [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value is not None]


class Done(NamedTuple):
    """An instance that was run. details: what decided it, its lower bound, and the message of an error."""

    instance: Instance
    result: InstanceResult
    details: dict[str, Any]


def run_instances(
    instances: Sequence[Instance],
    options: Options,
    *,
    jobs: int = 1,
    counterexamples: Path | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Generator[Done, None, None]:
    """Run the instances, whose files must be there, `jobs` at a time, and yield each when it is done.

    Counterexamples are written into the folder `counterexamples`. When `stopped` says so, running processes are ended
    and yield nothing.
    """
    waiting = deque(zip(instances, counterexample_files(instances, counterexamples), strict=True))
    running: list[_Process] = []
    try:
        while (waiting or running) and not stopped():
            while waiting and len(running) < jobs:
                running.append(_Process(*waiting.popleft(), options))
            for process in [each for each in running if each.over()]:
                running.remove(process)
                yield process.done()
            time.sleep(POLL)
    finally:
        for process in running:
            process.end()


def counterexample_files(instances: Sequence[Instance], folder: Path | None) -> list[Path | None]:
    """A file in the folder for the counterexample of each instance: NETWORK_PROPERTY.counterexample.

    Where several would have the same name, they get their places in the list too.
    """
    if folder is None:
        return [None] * len(instances)
    names = [f"{_stem(each.key.network)}_{_stem(each.key.property)}" for each in instances]
    several = Counter(names)
    numbered = (f"{name}_{place}" if several[name] > 1 else name for place, name in enumerate(names, 1))
    return [folder / f"{name}.counterexample" for name in numbered]


def _stem(name: str) -> str:
    path = Path(name)
    return (path.with_suffix("") if is_packed(path) else path).stem


class _Process:
    """`certtrain decide` for an instance, with what it writes in a folder of its own."""

    def __init__(self, instance: Instance, counterexample: Path | None, options: Options) -> None:
        self.instance, self.late = instance, False
        self.folder = tempfile.TemporaryDirectory(prefix="certtrain-bench-")
        self.streams = [self._file(name).open("wb") for name in ("out", "err")]
        self.start = time.monotonic()
        self.process = subprocess.Popen(
            self._command(counterexample, options),
            stdin=subprocess.DEVNULL,
            stdout=self.streams[0],
            stderr=self.streams[1],
            env=_environment(options.threads),
            start_new_session=True,  # so that it ends with all processes that it starts, and not by Ctrl-C
        )

    def _command(self, counterexample: Path | None, options: Options) -> list[str]:
        words = ["decide", str(self.instance.network), str(self.instance.property), *options.words()]
        words += ["--json", "--results", str(self._file("answer"))]
        if self.instance.time_limit is not None:
            words.append(f"--timeout={self.instance.time_limit!r}")
        if counterexample is not None:
            words += ["--counterexample", str(counterexample)]
        return [sys.executable, "-m", "certtrain", *words]

    def _file(self, name: str) -> Path:
        return Path(self.folder.name, name)

    def over(self) -> bool:
        """Whether the process has ended; it is ended if its time is up."""
        limit = self.instance.time_limit
        if self.process.poll() is None and limit is not None and time.monotonic() - self.start > limit + OVERTIME:
            self.late = True
            self._kill()
        return self.process.poll() is not None

    def done(self) -> Done:
        """The result of a process that has ended; removes its files."""
        seconds = time.monotonic() - self.start
        word, details = self._result()
        self.end()
        return Done(self.instance, InstanceResult(word, seconds), details)

    def end(self) -> None:
        """End the process, if it still runs, and remove its files."""
        self._kill()
        for stream in self.streams:
            stream.close()
        self.folder.cleanup()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.name == "posix":
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        self.process.wait()

    def _result(self) -> tuple[str, dict[str, Any]]:
        word = read_answer(self._file("answer"))
        if self.process.returncode == 0 and word is not None:
            found = json.loads(self._file("out").read_text(encoding="utf-8"))
            return word, {name: found[name] for name in ("by", "bound")}
        if self.late:
            return "timeout", {"message": f"ended {OVERTIME:g} seconds after its time limit"}
        return "error", {"message": self._message(), "exit_code": self.process.returncode}

    def _message(self) -> str:
        """What the process said about its error."""
        if self.process.returncode < 0:
            return f"ended by signal {-self.process.returncode}; there may be too little memory"
        said = self._file("err").read_text(encoding="utf-8", errors="replace").strip()
        _, head, message = said.rpartition("error: ")
        return message if head and "Traceback" not in said else said.rpartition("\n")[2] or "ended without a result"


def _environment(threads: int | None) -> dict[str, str]:
    """The environment of a process that computes with so many threads."""
    own = {} if threads is None else {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return {**os.environ, "PYTHONIOENCODING": "utf-8", "NO_COLOR": "1", **own}
