#!/usr/bin/env bash
# bash launch/tpu_vm.sh --config configs/ddpm.py --workdir runs/mine --config.data.path=FOLDER [MORE]
# Run it on a TPU VM: installs into .venv and trains on its TPU cores, in bfloat16 unless --config.model.bfloat16=False.
# On a slice of several machines start it on all of them at once, with images and workdir on storage that all share:
#   gcloud compute tpus tpu-vm ssh NAME --worker=all --command="cd jaxsynth && bash launch/tpu_vm.sh --distributed ..."
# Needs Python 3.11 (PYTHON=/path/to/python3.11). Paths are relative to the repository.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! compgen -G "/dev/accel[0-9]*" > /dev/null && ! compgen -G "/dev/vfio/[0-9]*" > /dev/null; then
    echo "error: no TPU found on this machine (neither /dev/accel0 nor /dev/vfio/0): run it on a TPU VM" >&2
    exit 2
fi
case " $* " in *" --config.model.bfloat16="* | *distill*) ;; *) set -- "$@" --config.model.bfloat16=True ;; esac
. launch/venv.sh "${EXTRAS:-tpu}"
exec python -m jaxsynth.train "$@"
