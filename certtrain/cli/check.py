"""certtrain check: compute the certificates in a file again."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from certtrain.cli.networks import ModuleOption, options_of
from certtrain.cli.options import (
    AsJson,
    DataDir,
    DeviceOption,
    Memory,
    data_folder,
    network_file,
    open_model,
    open_split,
    wrong_usage,
)
from certtrain.spec.choices import DeviceName

if TYPE_CHECKING:
    from certtrain.certfile import Checked
    from certtrain.network.modelfile import Classifier

CertificateFile = Annotated[
    Path, typer.Argument(metavar="CERTIFICATES", help="A certificate file that `certtrain verify --out` wrote.")
]
CheckedModel = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="The model file that the certificates are about, or the folder of its run."),
]
PartialLimit = Annotated[
    int | None, typer.Option(min=1, help="Check only this many examples, starting with the first: a partial check.")
]


def check_command(
    certificates: CertificateFile,
    model: CheckedModel,
    data_dir: DataDir = None,
    limit: PartialLimit = None,
    memory: Memory = None,
    device: DeviceOption = "auto",
    module: ModuleOption = None,
    as_json: AsJson = False,
) -> None:
    """Compute the certificates in a file again, and check whether they hold.

    The file says what is checked, and by which method. Nothing else in it is trusted. If a certificate does not hold,
    the exit code is 3.
    """
    from certtrain.storage import check_certificate_file, check_model_file

    _check_order(certificates, model)
    check_certificate_file(certificates)
    model = network_file(model)
    check_model_file(model)
    opened = _opened(certificates, model, device, data_dir, module)
    data_dir = data_folder(data_dir, model)
    checked = _checked(certificates, model, opened, data_dir, limit, memory)
    from certtrain import render

    if as_json:
        render.show_json({"model": str(model), **checked.to_dict()})
    else:
        render.show_checked(checked)


def _opened(
    certificates: Path, model: Path, device: DeviceName, data_dir: Path | None, module: str | None
) -> "Classifier":
    """The network that the certificates are about; one that certtrain did not train is read as they say."""
    from certtrain.certfile import read_header

    header = read_header(certificates)
    if header.reading is None:
        return open_model(model, device, data_dir)
    from certtrain import render

    render.note(f"as the certificates say, {header.reading.preprocessing}")
    options = options_of(header.reading, header.data.name, module)
    return options.open(model, header.eps.value, device, data_dir, header.data.split)


def _check_order(certificates: Path, model: Path) -> None:
    from certtrain.interchange.packed import ending

    if ending(certificates) == ".safetensors" != ending(model):
        wrong_usage("the certificates come first, then the model", "certtrain", "check", model, certificates)


def _checked(
    path: Path, file: Path, model: "Classifier", data_dir: Path | None, limit: int | None, memory: int | None
) -> "Checked":
    """The result of the check of the certificates in `path`. Raises FailedCheck and CertificateError."""
    from certtrain import render
    from certtrain.bounds.settings import DEFAULT
    from certtrain.certfile import check, check_model, read_certificates

    contents = read_certificates(path, model.metadata.input_shape)
    check_model(path, contents.header, file, model)
    data = contents.header.data
    images = open_split(model, data.split, data_dir, data.examples)
    memory = memory or DEFAULT.memory
    with render.checking() as on_progress:
        return check(path, contents, file, model, images, limit=limit, memory=memory, on_progress=on_progress)
