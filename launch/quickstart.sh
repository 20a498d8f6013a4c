#!/usr/bin/env bash
# bash launch/quickstart.sh [FOLDER_OF_IMAGES]
# Installs into .venv, trains, simulates, samples and evaluates; leaves runs/quickstart. EXTRAS=cuda for NVIDIA GPUs.
set -euo pipefail
folder=${1:-}
case $folder in "" | /*) ;; *) folder=$PWD/$folder ;; esac
cd "$(dirname "$0")/.."
. launch/venv.sh "${EXTRAS:-}"
exec python -m jaxsynth.quickstart ${folder:+"$folder"}
