#!/usr/bin/env bash
# Checks that the network and the property of an instance can be read; the exit code is 1 if not.
# The competition calls it before each instance, as: prepare_instance.sh v1 CATEGORY ONNX VNNLIB
# CERTTRAIN_PYTHON names a Python other than that of install_tool.sh.
set -euo pipefail

if [ "${1:-}" != v1 ] || [ $# -ne 4 ]; then
  echo "usage: prepare_instance.sh v1 CATEGORY ONNX VNNLIB" >&2
  exit 1
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
"${CERTTRAIN_PYTHON:-$here/.venv/bin/python}" - "$3" "$4" <<'PYTHON'
import sys
from pathlib import Path

from certtrain.errors import CerttrainError
from certtrain.interchange.onnxfile import open_network
from certtrain.interchange.vnnlib import read_property

try:
    open_network(Path(sys.argv[1]))
    read_property(Path(sys.argv[2]))
except CerttrainError as error:
    sys.exit(f"error: {error}")
PYTHON
