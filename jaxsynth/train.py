"""Trains a network on a folder of images.

    python -m jaxsynth.train --config configs/ddpm.py --workdir runs/mine --config.data.path=FOLDER

Started again with the same workdir it goes on where it stopped. The workdir gets `checkpoints/`, `scalars.jsonl`,
`tensorboard/` and `previews/`.
"""

import dataclasses
import datetime
import importlib
import itertools
import json
import math
import signal
import sys
import time
from pathlib import Path

from jaxsynth import cli
from jaxsynth.errors import InputError

VAL_PATCHES = 16  # at least so many held-out patches, whatever the batch
RUN_AHEAD = 4  # steps that the host may be ahead of the device
PATCHES = {2: (128, 128), 3: (32, 64, 64)}  # where data.patch is left open
EVENTS = ("log", "val", "checkpoint", "preview")
# What a run may not change when it is continued.
FIXED = (
    "task",
    "seed",
    "model",
    "diffusion",
    "distill",
    "data.normalization",
    "data.patch",
    "data.channel",
    "optim.name",
    "optim.ema_decay",
)
# Keys that runs of earlier versions lack, and how those were trained.
EARLIER = {"diffusion": {"prediction": "noise", "weighting": "none", "snr_cap": 5.0}}


def main() -> None:
    """Entry point of the command."""
    cli.run(_main)


def _main() -> None:
    epilog = "Any key of configs/common.py can be set as --config.KEY=VALUE."
    parser = cli.Parser("jaxsynth.train", __doc__, epilog=epilog)
    parser.add_argument("--config", required=True, help="configuration file, see configs/")
    parser.add_argument("--workdir", required=True, help="folder of the run; an existing run is continued")
    args, overrides = parser.parse_known_args()
    config = cli.read_config(args.config, overrides)
    cli.enable_compilation_cache()
    train(config, Path(args.workdir))


def train(config, workdir: Path) -> None:
    """Trains until `config.train.num_steps`, or until a signal, saving as it goes.

    Raises:
      InputError: unusable images or configuration; nothing has been written then.
      SystemExit: a non-finite loss (status 1) or a signal (status 128 + its number).
    """
    import jax

    from jaxsynth import checkpoint, devices, keys, log
    from jaxsynth.data import intensity as intensities
    from jaxsynth.data import stream, survey, volumes

    # Devices.
    mesh = devices.mesh_for(config.data.batch_size, config.optim.accumulate)
    split, replicated = devices.split(mesh), devices.replicated(mesh)
    key = keys.root(config.seed)

    # Task and images: whatever is wrong with them is said before anything is written.
    _check_numbers(config)
    task = _find_task(config.task)
    # A task may start from another run: it fills in the configuration from there and takes over the scale of images.
    inherited = task.inherit(config) if hasattr(task, "inherit") else None
    parts = task.build(config)
    train_set, val_set = _open_images(config)
    patch = tuple(config.data.patch)  # filled in now where the configuration left it open
    saved = _saved_metadata(workdir, config)
    if saved or inherited:
        intensity = intensities.Intensity.from_dict((saved or inherited)["intensity"])
        if intensity.dtype != train_set.dtype.name:
            run = workdir if saved else config.distill.teacher
            raise InputError(f"{run} was trained on {intensity.dtype} images, {config.data.path} is {train_set.dtype}")
    else:
        intensity = intensities.fit(lambda: volumes.each(train_set), config.data.normalization)

    # State, restored where there is one.
    batch_shape = (config.data.batch_size, *patch, 1)
    state = jax.jit(lambda k: task.init(parts, k, batch_shape), out_shardings=replicated)(keys.stream(key, "init"))
    manager = checkpoint.open_manager(workdir, config.train.keep_last)
    restored = checkpoint.restore_latest(manager, state)
    state = state if restored is None else restored
    first = int(state.step)
    last = config.train.num_steps
    if first >= last:
        manager.close()
        print(f"nothing to do: {workdir} is at step {first} of {last}")
        return

    # Batches.
    resident = stream.fits_on_device(train_set, config.data.device_limit_gib * 2**30)
    options = {"patch": patch, "batch_size": config.data.batch_size, "split": split}
    options["replicated"] = replicated
    batches = stream.batches(
        train_set,
        intensity,
        keys.stream(key, "patches"),
        resident=resident,
        first_step=first,
        symmetries=config.data.symmetries,
        **options,
    )
    held_out = stream.batches(
        val_set or train_set, intensity, keys.stream(key, "held out"), resident=False, symmetries=False, **options
    )
    val_batches = list(itertools.islice(held_out, -(-VAL_PATCHES // config.data.batch_size)))
    held_out.close()

    # The compiled functions.
    step_fn = jax.jit(lambda s, b: task.step(parts, s, b, keys.stream(key, "train")), donate_argnums=0)
    validate_fn = jax.jit(lambda s, b: task.validate(parts, s, b, keys.stream(key, "validate")))
    preview_fn = jax.jit(lambda s, b: task.preview(parts, s, b, keys.stream(key, "preview")))

    num_params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
    print(
        f"{len(train_set.paths)} training and {len(val_set.paths) if val_set else 0} held-out images "
        f"({train_set.ndim}D, {train_set.dtype}), "
        f"{'kept on the device' if resident else 'read from disk by background threads'}; "
        f"{num_params / 1e6:.2f} M parameters; {mesh.size} x {jax.devices()[0].device_kind}"
    )
    print(f"{'continuing at' if first else 'starting at'} step {first} of {last}; the first step compiles")
    if mesh.size < jax.device_count():
        print(f"note: data.batch_size={config.data.batch_size} does not split over all {jax.device_count()} devices")
    if val_set is None:
        print("note: no image is held out: validation runs on the training images")

    seen = survey.survey(train_set, intensity) if saved is None else None
    metadata = {
        "config": config.to_dict(),
        "intensity": intensity.to_dict(),
        "spacing_um": train_set.spacing_um,
        "num_files": len(train_set.paths),
        "cells": saved["cells"] if saved else seen and dataclasses.asdict(seen),
    }

    def validate(state) -> dict:
        rows = jax.device_get([validate_fn(state, batch) for batch in val_batches])
        return {f"val/{name}": float(sum(row[name] for row in rows) / len(rows)) for name in rows[0]}

    def last_good() -> str:
        manager.wait_until_finished()
        good = manager.latest_step()
        return "none yet" if good is None else str(workdir / checkpoint.FOLDER / str(good))

    def diverged(step: int, what: str):
        sys.exit(
            f"error: {what} at step {step} is not finite; last good checkpoint: {last_good()}. "
            "Lower optim.learning_rate or optim.clip_norm and start again."
        )

    stopped = []
    handlers = {s: signal.signal(s, lambda number, _: stopped.append(number)) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        with log.ScalarLog(workdir, first) as scalars:
            pending = []
            clock = None
            for step in range(first + 1, last + 1):
                state, values = step_fn(state, next(batches))
                pending.append(values)
                interrupted = bool(stopped)  # read once: a signal that comes later is for the next step
                ending = step == last or interrupted
                due = {what: ending or _is_due(step, config.train[f"{what}_every"]) for what in EVENTS}
                if not any(due.values()):
                    if clock is None:  # rates are of steps, not of the compilation of the first
                        jax.block_until_ready(values)
                        clock = (step, time.perf_counter())
                    if len(pending) > RUN_AHEAD:
                        jax.block_until_ready(pending[-RUN_AHEAD])
                    continue

                # Losses are fetched here only, so that the device never waits for the host in between; none is
                # skipped, and nothing is saved from a state past a bad one.
                rows, pending = jax.device_get(pending), []
                for row_step, row in enumerate(rows, step - len(rows) + 1):
                    if not all(map(math.isfinite, row.values())):
                        diverged(row_step, "the loss or its gradient")
                if due["log"]:
                    now = {name: float(sum(row[name] for row in rows) / len(rows)) for name in rows[0]}
                    line = f"step {step}/{last}  loss {now['loss']:.4f}"
                    if clock and step > clock[0]:
                        rate = now["steps_per_second"] = (step - clock[0]) / (time.perf_counter() - clock[1])
                        left = datetime.timedelta(seconds=round((last - step) / rate))
                        line += f"  {rate:.2f} steps/s  {rate * config.data.batch_size:.1f} patches/s  ETA {left}"
                    print(line, flush=True)
                    scalars.write(step, now)
                if due["val"] or due["checkpoint"]:
                    validation = validate(state)
                    if not math.isfinite(validation["val/loss"]):
                        diverged(step, "the held-out loss")
                    print(f"step {step}/{last}  held-out loss {validation['val/loss']:.4f}", flush=True)
                    scalars.write(step, validation)
                if due["checkpoint"]:
                    checkpoint.save(manager, state, metadata, validation["val/loss"])
                if due["preview"] and not interrupted:
                    log.write_preview(workdir, step, jax.device_get(preview_fn(state, val_batches[0])))
                clock = (step, time.perf_counter())
                if interrupted:
                    manager.wait_until_finished()
                    print(f"stopped by signal {stopped[0]} after step {step}; saved. The same command continues.")
                    sys.exit(128 + stopped[0])
            manager.wait_until_finished()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        batches.close()
        manager.close()
    print(f"done: {workdir}")


def _find_task(name: str):
    """The module of a task.

    Raises:
      InputError: there is none of that name.
    """
    there = sorted(p.stem for p in (Path(__file__).parent / "tasks").glob("[!_]*.py"))
    if name not in there:
        raise InputError(f"unknown task {name!r}: expected one of {', '.join(there)}")
    return importlib.import_module(f"jaxsynth.tasks.{name}")


def _is_due(step: int, every: int) -> bool:
    """Whether an event is due that happens `every` so many steps; 0: only at the end."""
    return every > 0 and step % every == 0


def _check_numbers(config) -> None:
    """Raises InputError for numbers that no training can run with."""
    least = {"train.num_steps": 1, "train.keep_last": 1, "optim.learning_rate": 0, "optim.warmup_steps": 0}
    least |= {f"train.{what}_every": 0 for what in EVENTS} | {"data.device_limit_gib": 0, "optim.clip_norm": 0}
    for name, limit in least.items():
        section, key = name.split(".")
        if not config[section][key] >= limit:
            raise InputError(f"{name} must be at least {limit}, got {config[section][key]}")
    if not 0 <= config.optim.ema_decay < 1:
        raise InputError(f"optim.ema_decay must lie in [0, 1), got {config.optim.ema_decay}")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"seed must lie in 0..{2**32 - 1}, got {config.seed}")


def _open_images(config):
    """The training set and the held-out set (None where a single image leaves none), both checked.

    Raises:
      InputError: images that cannot be used, naming the file and the cause.
    """
    from jaxsynth.data import volumes

    data = config.data
    if not data.path:
        raise InputError("no images given: set --config.data.path=FOLDER")
    select = {"channel": None if data.channel < 0 else data.channel, "dataset": data.dataset}

    def files(path: str) -> list[Path]:
        return volumes.find_files(path if Path(path).exists() else [part.strip() for part in path.split(",")])

    if not data.patch:
        data.patch = PATCHES[volumes.read(files(data.path)[0], **select).ndim]
    if len(data.patch) not in PATCHES or any(size < 8 for size in data.patch):
        raise InputError(f"data.patch must have 2 (y, x) or 3 (z, y, x) sizes of 8 or more, got {tuple(data.patch)}")
    if not 0 <= data.val_fraction < 1:
        raise InputError(f"data.val_fraction must lie in [0, 1), got {data.val_fraction}")

    def open_set(path: str):
        return volumes.open_set(
            files(path),
            **select,
            spacing=tuple(data.spacing_um) or None,
            min_shape=tuple(data.patch),
            allow_padding=data.allow_padding,
        )

    whole = open_set(data.path)
    if data.val_path:
        val = open_set(data.val_path)
        if val.dtype != whole.dtype:
            raise InputError(f"data.val_path holds {val.dtype} images, data.path {whole.dtype}")
        return whole, val
    count = len(whole.paths)
    held = min(max(round(data.val_fraction * count), 1 if data.val_fraction else 0), count - 1)
    # The last files: neighbouring frames of a series are nearly the same image, so a block is held out, no mixture.
    val = volumes.subset(whole, range(count - held, count)) if held else None
    return volumes.subset(whole, range(count - held)), val


def _saved_metadata(workdir: Path, config) -> dict | None:
    """The metadata of the run's latest checkpoint, or None for a new run.

    Raises:
      InputError: the run was started with another network, process or normalisation.
    """
    from jaxsynth import checkpoint

    if not checkpoint.exists(workdir):
        return None
    saved = checkpoint.read_metadata(workdir, "latest")
    for name in FIXED:
        old, new = saved["config"], config.to_dict()
        for part in name.split("."):
            old, new = old.get(part), new[part]
        if old is None:  # of an earlier version, which had no such part
            continue
        if name in EARLIER:
            old = EARLIER[name] | old
        if json.dumps(old, sort_keys=True) != json.dumps(new, sort_keys=True):
            raise InputError(f"{workdir} was trained with {name}={old}, now {new}: restore it or use another --workdir")
    return saved


if __name__ == "__main__":
    main()
