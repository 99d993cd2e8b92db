#!/usr/bin/env bash
# Creates a virtual environment with the pinned packages and hilum's five distributions in editable mode.
# usage: setup_environment.sh VENV    (PYTHON chooses the interpreter)
set -euo pipefail
venv=${1:?usage: setup_environment.sh VENV}
python=${PYTHON:-python3}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install -q uv
# A CPU-only torch may live in a local wheel folder; uv reads such folders only when told.
"$venv/bin/uv" pip install -q --python "$venv/bin/python" ${PIP_FIND_LINKS:+--find-links "$PIP_FIND_LINKS"} \
    -c constraints.txt hatchling editables
"$venv/bin/uv" pip install -q --python "$venv/bin/python" ${PIP_FIND_LINKS:+--find-links "$PIP_FIND_LINKS"} \
    -c constraints.txt --no-build-isolation --compile-bytecode \
    -e 'packages/core[dev]' -e packages/medical -e packages/surgical -e packages/infrared -e packages/industrial
"$venv/bin/python" tools/repair_torchvision.py
