#!/usr/bin/env bash
# bash launch/gpu.sh --config configs/ddpm.py --workdir runs/mine --config.data.path=FOLDER [MORE]
# Installs into .venv and trains on all NVIDIA GPUs of this machine, in bfloat16 unless --config.model.bfloat16=False.
# Needs a driver for CUDA 12 (525 or later); CUDA itself comes with the installation. Paths are relative to the
# repository. Arguments are those of `python -m jaxsynth.train`. CUDA_VISIBLE_DEVICES=0,1 chooses GPUs.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! nvidia-smi -L > /dev/null 2>&1; then
    echo "error: no NVIDIA GPU found: nvidia-smi is missing or fails; install the NVIDIA driver, 525 or later" >&2
    exit 2
fi
case " $* " in *" --config.model.bfloat16="* | *distill*) ;; *) set -- "$@" --config.model.bfloat16=True ;; esac
. launch/venv.sh "${EXTRAS:-cuda}"
exec python -m jaxsynth.train "$@"
