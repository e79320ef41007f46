"""Certificate files: written batch by batch, read strictly, and checked by recomputing them."""

from certtrain.certfile.checking import Checked, check, check_model
from certtrain.certfile.lines import Header, Record, Seal, differences
from certtrain.certfile.reading import Contents, read_certificates, read_header
from certtrain.certfile.writing import Writer, check_same_task, describe_task, locked_certificates

__all__ = [
    "Checked",
    "Contents",
    "Header",
    "Record",
    "Seal",
    "Writer",
    "check",
    "check_model",
    "check_same_task",
    "describe_task",
    "differences",
    "locked_certificates",
    "read_certificates",
    "read_header",
]
