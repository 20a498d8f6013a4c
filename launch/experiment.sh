#!/usr/bin/env bash
# JAXSYNTH_DATA=FOLDER bash launch/experiment.sh [ARGUMENTS]
# Installs into .venv, then trains segmentation networks on real and on synthetic images and scores them: all of the
# experiment, or what the arguments of `python -m jaxsynth.experiment` choose. The same command goes on where it
# stopped. EXTRAS=cuda for NVIDIA GPUs. Paths are relative to the repository.
set -euo pipefail
data=${JAXSYNTH_DATA:-}
case $data in "" | /*) ;; *) data=$PWD/$data ;; esac
cd "$(dirname "$0")/.."
if [ -z "$data" ]; then
    echo "error: JAXSYNTH_DATA names no folder of annotated images: gowt1/, hela/, dsb2018/, embryo3d/ with images/ and masks/" >&2
    exit 2
fi
. launch/venv.sh "${EXTRAS:-}"
exec python -m jaxsynth.experiment --data "$data" "$@"
