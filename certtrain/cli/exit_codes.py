"""How a command ends: its exit codes, and what each means."""

from enum import IntEnum
from typing import NamedTuple

from certtrain.errors import CerttrainError, FailedCheck, SoundnessError


class ExitCode(IntEnum):
    """All that certtrain ends with; what Python does not catch ends with 1 as well, and a traceback."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    DOES_NOT_HOLD = 3
    FAULT = 4
    INTERRUPTED = 130


class Explanation(NamedTuple):
    """What an exit code says: in a few words, and in sentences."""

    short: str
    long: str


EXPLANATIONS = {
    ExitCode.DONE: Explanation(
        "done",
        "The command did what it was asked. A time budget that ends it is no error, and neither is any answer of "
        "`decide`: sat, unsat or unknown.",
    ),
    ExitCode.ERROR: Explanation(
        "wrong files, data or settings",
        "Something is wrong with files, data or settings, or the output cannot be written. One message says what.",
    ),
    ExitCode.USAGE: Explanation(
        "wrong command line", "The command line is wrong. The message says what was expected, or what to type instead."
    ),
    ExitCode.DOES_NOT_HOLD: Explanation(
        "certificates do not hold",
        "`check` computed the certificates in a file again, and one or more do not hold. A file that is damaged, "
        "unfinished, or about another model or other data ends with 1.",
    ),
    ExitCode.FAULT: Explanation(
        "fault in certtrain",
        "A proof and an observation contradict each other, or an export computes something else than its network. "
        "The fault is in certtrain, or in the program that ran the network. No result is reported.",
    ),
    ExitCode.INTERRUPTED: Explanation(
        "interrupted",
        "Ctrl-C ended the command. A training then stops at a checkpoint, and a verification with --out between "
        "batches; both say how to go on, and take SIGTERM as Ctrl-C.",
    ),
}


def exit_code(error: CerttrainError) -> ExitCode:
    """The code of a command that ends by this error."""
    if isinstance(error, FailedCheck):
        return ExitCode.DOES_NOT_HOLD
    return ExitCode.FAULT if isinstance(error, SoundnessError) else ExitCode.ERROR


def summary() -> str:
    """All codes in one line."""
    return f"Exit codes: {'; '.join(f'{code} {explanation.short}' for code, explanation in EXPLANATIONS.items())}."
