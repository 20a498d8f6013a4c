#!/usr/bin/env bash
# bash launch/test.sh [PYTEST_ARGUMENTS]
# Installs into .venv, then ruff and pytest, two files at a time. JAXSYNTH_DATA names the folder of real images that
# some tests need; EXTRAS=test,peers adds PyTorch for the twin tests.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/venv.sh "${EXTRAS:-test}"
ruff check .
exec python -m pytest -n 2 --dist loadfile "$@"
