"""Every error that certtrain raises on purpose, in one tree.

CerttrainError
├── PresetError          a preset is unknown or unreadable, or has a wrong field
├── EpsilonError         a perturbation radius is not a number in [0, 1]
├── DataError            a data set is missing or unreadable, or has the wrong shape
├── MethodError          a bound method is unknown
├── UnsupportedLayer     a network has a layer without a bound rule
├── NetworkError         a network cannot be built from a user's source or description, or does not fit its use
├── PropertyError        a VNN-LIB property is missing, malformed or not supported
├── BenchmarkError       a list of instances, or a file with results of them, cannot be read or does not fit
├── DeviceError          a device is missing, too small, or cannot do what is needed
├── ModelFileError       a model file is missing or damaged, or was not written by certtrain
├── CertificateError     a certificate file is missing or damaged, or was not written by certtrain
│   └── FailedCheck      a certificate in a file does not hold
├── RunError             a run cannot be started or resumed
├── StorageError         a file cannot be written
├── NonFiniteError       NaN or infinity occurred
├── SoundnessError       inference contradicts a bound or a certificate, or another form of the network: our fault
└── MissingExtra         an optional package is missing

The message says what is wrong, where, and what to do. The command line catches
the base class only, and ends with an exit code for the kind of error
(`cli/exit_codes.py`). Any other exception is a programming error and shows its
traceback.
"""


class CerttrainError(Exception):
    """Base of all errors that certtrain raises on purpose."""


class PresetError(CerttrainError):
    """A preset is unknown or unreadable, or has a wrong field."""


class EpsilonError(CerttrainError, ValueError):
    """A perturbation radius is not a number in [0, 1]."""


class DataError(CerttrainError):
    """A data set is missing or unreadable, or has the wrong shape."""


class MethodError(CerttrainError):
    """A bound method is unknown."""


class UnsupportedLayer(CerttrainError):
    """A network has a layer without a bound rule."""


class NetworkError(CerttrainError):
    """A network cannot be built from a user's source or description, or does not fit its use."""


class PropertyError(CerttrainError):
    """A VNN-LIB property is missing, malformed or not supported."""


class BenchmarkError(CerttrainError):
    """A list of instances, or a file with results of them, cannot be read or does not fit."""


class DeviceError(CerttrainError):
    """A device is missing, its memory is too small, or it cannot do what is needed."""


class ModelFileError(CerttrainError):
    """A model file is missing or damaged, or was not written by certtrain."""


class CertificateError(CerttrainError):
    """A certificate file is missing or damaged, was not written by certtrain, or does not hold."""


class FailedCheck(CertificateError):
    """A certificate in a file does not hold when it is computed again."""


class RunError(CerttrainError):
    """A run cannot be started or resumed."""


class StorageError(CerttrainError):
    """A file cannot be written."""


class NonFiniteError(CerttrainError):
    """NaN or infinity occurred in a computation."""


class SoundnessError(CerttrainError):
    """Inference contradicts a bound or a certificate, or a network differs from its source: a fault in certtrain."""


class MissingExtra(CerttrainError):
    """An optional package is missing."""


# What torch's RuntimeErrors say where memory is not enough: its allocator for CPUs, and C++ itself.
_MEMORY_WORDS = ("DefaultCPUAllocator", "std::bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was not enough: Python's, a CPU's, for which torch has no class of errors, or a GPU's."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY_WORDS)
    return isinstance(error, MemoryError) or "OutOfMemoryError" in kinds or said


def reason(error: BaseException) -> str:
    """What went wrong; for an error of the system without its number and its file, which the message names already."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
