"""Every error that a user can cause, in one tree.

CerttrainError
├── PresetError          a preset is unknown, unreadable or has a wrong field
├── EpsilonError         a perturbation radius that is not a number in [0, 1]
├── DataError            a data set is missing, unreadable or of the wrong shape
├── MethodError          a bound method that is not known
├── UnsupportedLayer     a network holds something that no bound rule covers
├── NetworkError         a user's own network cannot be had from its source, or does not fit what is asked
├── PropertyError        a VNN-LIB property is missing, malformed, or says what cannot be decided here
├── DeviceError          the asked-for device is not there, or too small
├── ModelFileError       a model file is missing, damaged or foreign
├── CertificateError     a certificate file is missing, damaged or foreign
│   └── FailedCheck      what a certificate file says does not hold
├── RunError             a run folder cannot be started or resumed
├── StorageError         a file cannot be written
├── NonFiniteError       NaN or infinity turned up; training stops
├── SoundnessError       a certified point was attacked, an export differs: a fault in certtrain
└── MissingExtra         an optional package is needed

The message says what was wrong, where, and what to do next. The command line
catches the base class alone and ends with an exit code that says which kind it
was (`cli/exit_codes.py`); anything else is a programming error and shows its
traceback.
"""


class CerttrainError(Exception):
    """Base of all errors that certtrain raises on purpose."""


class PresetError(CerttrainError):
    """A preset is unknown, unreadable or has a wrong field."""


class EpsilonError(CerttrainError, ValueError):
    """A perturbation radius is not a number in [0, 1]."""


class DataError(CerttrainError):
    """A data set is missing, unreadable or of the wrong shape."""


class MethodError(CerttrainError):
    """A bound method is not known."""


class UnsupportedLayer(CerttrainError):
    """A network holds something that no bound rule covers."""


class NetworkError(CerttrainError):
    """A user's own network cannot be had from its source, or does not fit what is asked of it."""


class PropertyError(CerttrainError):
    """A VNN-LIB property is missing, malformed, or says what cannot be decided here."""


class DeviceError(CerttrainError):
    """The asked-for device is not there, or its memory is too small."""


class ModelFileError(CerttrainError):
    """A model file is missing, damaged or foreign."""


class CertificateError(CerttrainError):
    """A certificate file is missing, damaged or foreign, or what it says does not hold."""


class FailedCheck(CertificateError):
    """What a certificate file says does not hold when it is computed again."""


class RunError(CerttrainError):
    """A run folder cannot be started or resumed."""


class StorageError(CerttrainError):
    """A file cannot be written."""


class NonFiniteError(CerttrainError):
    """NaN or infinity turned up during training."""


class SoundnessError(CerttrainError):
    """A proof and an observation contradict each other."""


class MissingExtra(CerttrainError):
    """An optional package is needed for what was asked."""
