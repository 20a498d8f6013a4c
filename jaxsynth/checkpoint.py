"""Checkpoints: the training state and the metadata that makes it usable without the training run.

A run's folder holds `checkpoints/STEP/`; each has the state and, as JSON, the configuration, the intensity
normalisation and the voxel size.
"""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from jaxsynth.errors import InputError
from jaxsynth.records import TrainState

FOLDER = "checkpoints"


def open_manager(workdir: Path, keep_last: int = 1) -> ocp.CheckpointManager:
    """Manager of a run's checkpoints: saves in the background, keeps the last `keep_last` and the best.

    Best is the lowest metric `val_loss`. A checkpoint appears under its name only when it is whole.

    Raises:
      InputError: workdir is no folder.
    """
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir {workdir}: is a file, expected a folder")
    keep = policies.AnyPreservationPolicy(
        [
            policies.LatestN(keep_last),
            policies.BestN(get_metric_fn=lambda metrics: metrics["val_loss"], reverse=True, n=1),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=keep,
        # Without a best_fn metrics are neither written nor seen by the policy.
        best_fn=lambda metrics: metrics["val_loss"],
        best_mode="min",
        cleanup_tmp_directories=True,
    )
    return ocp.CheckpointManager((workdir / FOLDER).absolute(), options=options)


def save(manager: ocp.CheckpointManager, state: TrainState, metadata: dict, val_loss: float) -> None:
    """Starts saving `state` as the checkpoint of its step; nothing happens where that step is there already."""
    step = int(state.step)
    if step in manager.all_steps():
        return
    state = ocp.args.StandardSave(jax.tree.map(_one_copy, state))
    args = ocp.args.Composite(state=state, metadata=ocp.args.JsonSave(metadata))
    manager.save(step, args=args, metrics={"val_loss": val_loss}, force=True)


def _one_copy(leaf: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """A replicated array's copy on one device: orbax would have every device write a slice of it, and compile a program
    for every shape. With several processes it is left alone: they divide the writing by its sharding."""
    alone = isinstance(leaf, jax.Array) and jax.process_count() == 1 and leaf.is_fully_replicated
    return leaf.addressable_data(0) if alone else leaf


def restore_latest(manager: ocp.CheckpointManager, like: TrainState) -> TrainState | None:
    """The latest state, or None where there is none yet.

    Args:
      like: the state, or its shapes, dtypes and shardings.

    Raises:
      InputError: the checkpoint holds another network or optimiser.
    """
    step = manager.latest_step()
    return None if step is None else _restore(manager.directory / str(step), like)


def _restore(folder: Path, like: TrainState) -> TrainState:
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            return checkpointer.restore(folder / "state", like)
        except (ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0][:200]
            raise InputError(
                f"checkpoint {folder} does not fit the configured network and optimiser; "
                f"use the configuration it was trained with or another workdir ({reason})"
            ) from error


def exists(workdir: Path) -> bool:
    """Whether a run has a checkpoint."""
    root = workdir / FOLDER
    return root.is_dir() and any(p.name.isdigit() for p in root.iterdir())


def find(path: Path | str, step: str = "best") -> Path:
    """The folder of one checkpoint.

    Args:
      path: a run's folder, its `checkpoints` folder, or one checkpoint.
      step: best (lowest validation loss), latest, or a number. Ignored where `path` is one checkpoint.

    Raises:
      InputError: nothing there, or not that step.
    """
    path = Path(path)
    if (path / "metadata").is_dir() and (path / "state").is_dir():
        return path
    root = path / FOLDER if (path / FOLDER).is_dir() else path
    steps = sorted(int(p.name) for p in root.iterdir() if p.name.isdigit()) if root.is_dir() else []
    if not steps:
        raise InputError(f"no checkpoint found in {path}: expected a folder that jaxsynth.train wrote")
    if step == "latest":
        return root / str(steps[-1])
    if step == "best":
        return root / str(min(steps, key=lambda s: _val_loss(root / str(s))))
    if not step.isdigit() or int(step) not in steps:
        raise InputError(f"no checkpoint of step {step!r} in {root}: there are {', '.join(map(str, steps))}")
    return root / step


def _val_loss(folder: Path) -> float:
    file = folder / "metrics" / "metrics"
    return json.loads(file.read_text())["val_loss"] if file.is_file() else np.inf


def read_metadata(path: Path | str, step: str = "best") -> dict:
    """The metadata of a checkpoint: keys `config`, `intensity`, `spacing_um`, `num_files`, `cells`. `path`: see `find`.

    Raises:
      InputError: no checkpoint, or one that cannot be read.
    """
    file = find(path, step) / "metadata" / "metadata"
    try:
        return json.loads(file.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"checkpoint metadata {file} cannot be read: {error}") from error


def load(path: Path | str, like: TrainState, step: str = "best") -> TrainState:
    """The state of a checkpoint for inference. `path`, `step`: see `find`; `like`: see `restore_latest`."""
    return _restore(find(path, step).absolute(), like)


def fingerprint(params) -> str:
    """SHA-256 over names and values of the parameters: tells which network made an image."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()
