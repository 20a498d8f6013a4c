#!/usr/bin/env bash
# sbatch launch/slurm.sh --config configs/ddpm.py --workdir runs/mine --config.data.path=FOLDER [MORE]
# Installs into .venv and trains on the GPUs of several machines as one run, in bfloat16 unless
# --config.model.bfloat16=False. Submit it from the repository's folder, which all machines must see, as the images and
# the workdir. Needs SLURM, and a driver for CUDA 12 (525 or later) on the machines. data.batch_size must be a multiple
# of all GPUs together. The same command continues a run that ended at the time limit, which it is told of beforehand.
#SBATCH --job-name=jaxsynth
#SBATCH --output=slurm-%j.out
#SBATCH --nodes=2
#SBATCH --gpus-per-node=4
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
set -euo pipefail
if [ -z "${SLURM_JOB_ID:-}" ] || ! command -v srun > /dev/null; then
    echo "error: not inside a SLURM job: start it by sbatch launch/slurm.sh ARGUMENTS, see the top of this file" >&2
    exit 2
fi
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}" # sbatch runs a copy of this file from elsewhere
if [ ! -f launch/venv.sh ]; then
    echo "error: $PWD is not the repository: submit from its folder" >&2
    exit 2
fi
case " $* " in *" --config.model.bfloat16="* | *distill*) ;; *) set -- "$@" --config.model.bfloat16=True ;; esac
. launch/venv.sh "${EXTRAS:-cuda}"
# One process per GPU; every process sees all GPUs of its machine and takes that of its number.
exec srun --kill-on-bad-exit=1 python -m jaxsynth.train --distributed "$@"
