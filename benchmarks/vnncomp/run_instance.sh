#!/usr/bin/env bash
# Decides an instance and writes the result file: sat, unsat, unknown or timeout, and after sat the counterexample.
# The competition calls it as: run_instance.sh v1 CATEGORY ONNX VNNLIB RESULTS TIMEOUT
# The timeout is in seconds. CERTTRAIN_PYTHON names a Python other than that of install_tool.sh.
set -euo pipefail

if [ "${1:-}" != v1 ] || [ $# -ne 6 ]; then
  echo "usage: run_instance.sh v1 CATEGORY ONNX VNNLIB RESULTS TIMEOUT" >&2
  exit 1
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec "${CERTTRAIN_PYTHON:-$here/.venv/bin/python}" -m certtrain decide "$3" "$4" \
  --method complete --timeout "$6" --results "$5"
