"""The exit codes of the commands, and what each means."""

from enum import IntEnum
from typing import NamedTuple

from certtrain.errors import CerttrainError, FailedCheck, SoundnessError


class ExitCode(IntEnum):
    """Every exit code of certtrain. An exception that is not caught ends with 1 too, and with a traceback."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    DOES_NOT_HOLD = 3
    FAULT = 4
    INTERRUPTED = 130


class Explanation(NamedTuple):
    """The meaning of an exit code, in a few words and in sentences."""

    short: str
    long: str


EXPLANATIONS = {
    ExitCode.DONE: Explanation(
        "done",
        "The command did what it was asked to do. A time budget that runs out is not an error, nor is any answer of "
        "`decide`: sat, unsat or unknown.",
    ),
    ExitCode.ERROR: Explanation(
        "wrong files, data or settings",
        "Something is wrong with files, data or settings, or the output cannot be written. One message says what.",
    ),
    ExitCode.USAGE: Explanation(
        "wrong command line",
        "The command line is wrong. The message says what was expected, or which command to use instead.",
    ),
    ExitCode.DOES_NOT_HOLD: Explanation(
        "certificates or expected verdicts do not hold",
        "`check` computed the certificates in a file again, and one or more do not hold. If the file is damaged, "
        "unfinished, or about another model or other data, the code is 1. Also if `bench` contradicts a verdict that "
        "was expected.",
    ),
    ExitCode.FAULT: Explanation(
        "fault in certtrain",
        "A certified example was falsified, inference is outside its bounds, or an export or a network that was read "
        "computes something other than its source. The fault is in certtrain, or in the program that ran the network. "
        "No result is reported; `bench` reports those of the other instances.",
    ),
    ExitCode.INTERRUPTED: Explanation(
        "interrupted",
        "Ctrl-C ended the command. A training then stops at a checkpoint, `bench` at once, and a verification within "
        "seconds, with the accuracies so far. With --out a verification can be continued. All say how to continue, and "
        "treat SIGTERM like Ctrl-C.",
    ),
}


def exit_code(error: CerttrainError) -> ExitCode:
    """The exit code of a command that ends with this error."""
    if isinstance(error, FailedCheck):
        return ExitCode.DOES_NOT_HOLD
    return ExitCode.FAULT if isinstance(error, SoundnessError) else ExitCode.ERROR


def summary() -> str:
    """All exit codes in one line."""
    return f"Exit codes: {'; '.join(f'{code} {explanation.short}' for code, explanation in EXPLANATIONS.items())}."
