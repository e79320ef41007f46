#!/usr/bin/env bash
# Installs certtrain into an environment of its own beside this script.
# The competition calls it once, as: install_tool.sh v1
set -euo pipefail

if [ "${1:-}" != v1 ]; then
  echo "usage: install_tool.sh v1" >&2
  exit 1
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python3 -m venv "$here/.venv"
"$here/.venv/bin/pip" install "$here/../..[onnx,milp,vnnlib]"
