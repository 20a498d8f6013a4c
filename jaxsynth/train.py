"""Trains a network on a folder of images.

    python -m jaxsynth.train --config configs/ddpm.py --workdir runs/mine --config.data.path=FOLDER

Started again with the same workdir it goes on where it stopped. The workdir gets `checkpoints/`, `scalars.jsonl`,
`tensorboard/` and `previews/`.
"""

import contextlib
import copy
import datetime
import functools
import itertools
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxsynth import cli
from jaxsynth.errors import InputError

RUN_AHEAD = 4  # steps that the host may be ahead of the device
PROFILED = (3, 7)  # steps after the start that --profile traces, first and last


def main() -> None:
    """Entry point of the command."""
    cli.run(_main)


def _main() -> None:
    epilog = "Any key of configs/common.py can be set as --config.KEY=VALUE."
    parser = cli.Parser("jaxsynth.train", __doc__, epilog=epilog)
    parser.add_argument("--config", required=True, help="configuration file, see configs/")
    parser.add_argument("--workdir", required=True, help="folder of the run; an existing run is continued")
    joining = "join the processes of this run, one per machine or device, see launch/slurm.sh"
    parser.add_argument("--distributed", action="store_true", help=joining)
    parser.add_argument("--profile", metavar="DIR", help="trace steps 3 to 7 into this folder")
    args, overrides = parser.parse_known_args()
    config = cli.read_config(args.config, overrides)
    cli.keep_memory()
    cli.enable_compilation_cache()
    if args.distributed:
        from jaxsynth import devices

        devices.join(os.environ)
    train(config, Path(args.workdir), args.profile)


def train(config, workdir: Path, profile: str | None = None) -> None:
    """Trains until `config.train.num_steps`, or until a signal, saving as it goes.

    Where several processes have joined, all call this alike; the first alone prints, logs and draws previews.

    Args:
      profile: folder for a trace of some steps.

    Raises:
      InputError: unusable images or configuration; nothing has been written then.
      SystemExit: a non-finite loss (status 1) or a signal (status 128 + its number).
    """
    begun = time.perf_counter()
    import jax

    from jaxsynth import checkpoint, devices, keys, train_programs, train_source, train_start
    from jaxsynth.nn import unet
    from jaxsynth.tasks import ddpm

    # Devices.
    lead = jax.process_index() == 0
    say = functools.partial(print, flush=True) if lead else _nothing
    train_start.check_numbers(config)
    mesh = devices.mesh_for(config.data.batch_size, config.optim.accumulate, config.parallel.space)
    replicated = devices.replicated(mesh)
    key = keys.root(config.seed)

    # Task and images: whatever is wrong with them is said before anything is written.
    task = train_start.find_task(config.task)
    # A task may start from another run: it fills in the configuration from there and takes over the scale of images.
    inherited = task.inherit(config) if hasattr(task, "inherit") else None
    saved = train_start.saved_metadata(workdir, config.task)
    source = train_start.find_source(task).open_source(config, saved, inherited)
    train_start.check_same(workdir, saved, config)
    parts = task.build(config)
    patch = tuple(config.data.patch)  # filled in now where the configuration left it open
    if config.parallel.space > 1 and patch[-2] % (unet.MULTIPLE * config.parallel.space):
        raise InputError(
            f"data.patch: expected a multiple of {unet.MULTIPLE} x parallel.space={config.parallel.space} along y, "
            f"got {patch}"
        )
    first = int(checkpoint.find(workdir, "latest").name) if saved else 0
    last = config.train.num_steps
    if first >= last:
        say(f"nothing to do: {workdir} is at step {first} of {last}")
        return
    if profile:
        Path(profile).mkdir(parents=True, exist_ok=True)

    with contextlib.ExitStack() as stack:
        # The state, as shapes or restored, and the programs, compiled by a thread while images are read.
        init = train_programs.trace_init(task, parts, key, (config.data.batch_size, *patch, 1), replicated)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), init.out_info)
        manager = stack.enter_context(checkpoint.open_manager(workdir, config.train.keep_last))
        split = devices.split_space(mesh, len(patch))
        batch_like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), source.batch)
        pool = ThreadPoolExecutor(1, thread_name_prefix="compile")  # one after the other: the step is first
        stack.callback(pool.shutdown, cancel_futures=True)
        held_out_like = batch_like
        if source.held_out_batch is not None:
            place = functools.partial(jax.ShapeDtypeStruct, sharding=split)
            held_out_like = jax.tree.map(lambda x: place(x.shape, x.dtype), source.held_out_batch)
        given, viewed = (task, parts, key, like, batch_like), (task, parts, key, like, held_out_like)
        if ddpm.recomputes(config) == "auto":
            limit_bytes = train_programs.MEMORY_SHARE * train_programs.memory_limit() - source.held_bytes
            compiling = pool.submit(train_programs.compile_fitting, *given, limit_bytes)
        else:
            compiling = pool.submit(train_programs.compile_step, *given)
        validating = pool.submit(train_programs.compile_view, *viewed, "validate")
        previewing = functools.cache(lambda: train_programs.compile_view(*viewed, "preview"))
        state = checkpoint.restore_latest(manager, like)
        if state is None:
            state = init.lower().compile()(keys.stream(key, "init"))

        batches, val_batches, told = source.begin(key, first, train_source.Placing(split, replicated))
        stack.callback(batches.close)

        num_params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(like.params))
        say(
            f"{source.summary}; "
            f"{num_params / 1e6:.2f} M parameters; {mesh.size} x {jax.devices()[0].device_kind}"
            + (f" in {jax.process_count()} processes" if jax.process_count() > 1 else "")
        )
        say(f"{'continuing at' if first else 'starting at'} step {first} of {last}; the first step compiles")
        if mesh.size < jax.device_count():
            say(f"note: data.batch_size={config.data.batch_size} does not split over all {jax.device_count()} devices")
        if not source.held_out:
            say("note: no image is held out: validation runs on the training images")

        metadata = {"config": config.to_dict(), **told()}

        def validate(state) -> dict:
            rows = jax.device_get([validating.result()(state, batch, key) for batch in val_batches])
            return {f"val/{name}": float(sum(row[name] for row in rows) / len(rows)) for name in rows[0]}

        def diverged(step: int, what: str):
            manager.wait_until_finished()
            good = manager.latest_step()
            good = "none yet" if good is None else str(workdir / checkpoint.FOLDER / str(good))
            message = f"error: {what} at step {step} is not finite; last good checkpoint: {good}. "
            sys.exit(message + "Lower optim.learning_rate or optim.clip_norm and start again." if lead else 1)

        from jaxsynth import log  # takes a second where PyTorch is installed, while the step compiles

        write = stack.enter_context(log.ScalarLog(workdir, first)).write if lead else _nothing
        coming = itertools.chain([next(batches)], batches)  # the first while the step compiles
        step_fn = compiling.result()
        if devices.any_process(step_fn is None):
            say("note: the step does not fit the device's memory: activations are recomputed (model.remat)")
            always = copy.deepcopy(config)
            always.model.remat = "always"
            step_fn = train_programs.compile_step(task, task.build(always), key, like, batch_like)

        signalled = _watch_signals(stack)
        pending = []
        tracing = stack.enter_context(contextlib.ExitStack())
        for step in range(first + 1, last + 1):
            if profile and lead and step == min(first + PROFILED[0], last):
                jax.block_until_ready(state)
                tracing.enter_context(cli.profile(profile))
            state, values = step_fn(state, next(coming), key)
            pending.append(values)
            if step == first + 1:  # rates are of steps, not of what came before the first
                jax.block_until_ready(values)
                clock = (step, time.perf_counter())
                write(step, {"seconds_to_first_step": clock[1] - begun})
            if step == first + PROFILED[1]:
                jax.block_until_ready(values)
                tracing.close()
            interrupted = signalled(step)  # read once: a signal that comes later is for the next step
            ending = step == last or interrupted
            due = {what: ending or _is_due(step, config.train[f"{what}_every"]) for what in train_start.EVENTS}
            if not any(due.values()):
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
                if step > clock[0]:
                    rate = now["steps_per_second"] = (step - clock[0]) / (time.perf_counter() - clock[1])
                    left = datetime.timedelta(seconds=round((last - step) / rate))
                    line += f"  {rate:.2f} steps/s  {rate * config.data.batch_size:.1f} patches/s  ETA {left}"
                say(line)
                write(step, now)
            if due["val"] or due["checkpoint"]:
                validation = validate(state)
                if not math.isfinite(validation["val/loss"]):
                    diverged(step, "the held-out loss")
                say(f"step {step}/{last}  held-out loss {validation['val/loss']:.4f}")
                write(step, validation)
            if due["checkpoint"]:
                checkpoint.save(manager, state, metadata, validation["val/loss"])
            if due["preview"] and not interrupted:
                volumes_seen = jax.device_get(previewing()(state, val_batches[0], key))
                if lead:
                    log.write_preview(workdir, step, volumes_seen)
            clock = (step, time.perf_counter())
            if interrupted:
                manager.wait_until_finished()
                say(f"stopped by signal {interrupted} after step {step}; saved. The same command continues.")
                sys.exit(128 + interrupted)
        manager.wait_until_finished()
    say(f"done: {workdir}")


def _watch_signals(stack: contextlib.ExitStack) -> Callable[[int], int]:
    """signalled(step) -> the number of a signal that ends the run after this step, or 0; until `stack` closes.

    Of several processes all end after the same step, whichever was told: jax's service of preemptions, which listens to
    SIGTERM, has them agree.
    """
    import jax
    from jax.experimental import multihost_utils

    received = []
    handlers = {number: lambda number, _: received.append(int(number)) for number in (signal.SIGTERM, signal.SIGINT)}
    if jax.process_count() > 1:
        handlers = {signal.SIGINT: lambda *_: os.kill(os.getpid(), signal.SIGTERM)}
    for number, handler in handlers.items():
        stack.callback(signal.signal, number, signal.signal(number, handler))
    if jax.process_count() > 1:
        return lambda step: int(signal.SIGTERM) * multihost_utils.reached_preemption_sync_point(step)
    return lambda _: received[0] if received else 0


def _nothing(*_) -> None:
    """What the processes beside the first print and log."""


def _is_due(step: int, every: int) -> bool:
    """Whether an event is due that happens `every` so many steps; 0: only at the end."""
    return every > 0 and step % every == 0


if __name__ == "__main__":
    main()
