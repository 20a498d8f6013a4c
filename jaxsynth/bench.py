"""Measures speed and memory: one JSON object per line on stdout, then a table on stderr.

    python -m jaxsynth.bench --suite train --peer torch
    python -m jaxsynth.bench --suite sim --case celegans
    python -m jaxsynth.bench --suite all

Times are of the steady state, results left on the device: the median of several runs. compile_s is what a first call
costs on top of that, without a compilation cache. peak_bytes is what the program holds at once: arguments, results and
temporaries, or what the accelerator reports. peer names another program and where it was timed; ratio =
peer_median_s / median_s. Every case runs in a process of its own.

sim makes labels and sketch of one specimen at the paper's size. Its case stream is a step of training on images of
simulated specimens, with the keys steps_per_s and wait_share: the share of its time that the same step saves on a
batch that is there already, below 0 where that is lost in the noise.

sample makes an image of a sketch with the default sampler from t_start 400: image_256, image_1024, volume
(51 x 128 x 128) and volume_large (180 x 512 x 512; on a CPU one evaluation, multiplied); step_2d and step_3d are one
evaluation of the published network. --peer torch runs the PyTorch twin of tests/peers in turns with it: 400 DDPM steps
on every tile of the published tiling, each tile on its own; all but image_256 time single steps on single tiles and
multiply, as peer_note says. overhead is evaluated voxels over the image's, work operations over
those of the untiled network; peak_bytes, on a CPU, what the process grew. generate_2d and generate_3d simulate, sketch,
denoise and write several specimens: median_s is per volume, serial_s the same with every stage waited for.

train is one step of training: train_2d and train_3d the published network (instance norm) at the published patch,
train_2d_group and train_3d_group the default one. sharded_data_8 and sharded_space_8 split it over 8 fake devices,
which are counted, not run: flops_share of one device, 1/8 at best, and communication_bytes, those of the results of
the collectives per device.

gan is one step of training the GAN at the published patch, both networks at once (gan_train_2d, gan_train_3d), and one
image made of a mask (gan_generate). --peer torch trains generator and critic in turns, without augmentations, and its
critic sees generated images twice; flops are ours.

Steps of these suites are counted: flops are those of the direct convolutions, two per multiply-add, three times as many
for training, however they are computed, on both sides; bytes are what XLA counts as read and written. matmul_peak and
copy_peak are measured in the same process (suite device shows them): float32 on a CPU, bfloat16 elsewhere. peak_share
is flops_per_s / matmul_peak; no program can be faster than floor_compute_s = flops / matmul_peak, unless it computes
less, or than floor_memory_s = bytes / copy_peak, unless caches keep some. Their --peer is eager, and compiled by
torch.compile (peer_compiled_median_s, ratio_compiled).

start is the time from a command to the end of the first step of training: median_s with a warm compilation cache,
cold_s without, restore_s going on from a checkpoint; help_s is the slowest --help.
"""

import functools
import inspect
import itertools
import json
import math
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from jaxsynth import (
    bench_device,
    bench_gan,
    bench_generate,
    bench_peer,
    bench_sample,
    bench_sim,
    bench_start,
    bench_train,
    cli,
)
from jaxsynth.errors import InputError

KEYS = ("suite", "case", "shape", "num_cells", "device", "compile_s", "median_s", "voxels_per_s", "peak_bytes",
        "versions", "peer", "peer_median_s", "ratio")  # fmt: skip
OPTIONS = ("peer", "profile")  # which not every case takes
SLOW_ON_CPU = {("sample", "volume_large")}  # ten minutes
COLUMNS = {"cells": ("num_cells", 1), "evals": ("evaluations", 1), "overhead": ("overhead", 1), "work": ("work", 1),
           "compile s": ("compile_s", 1), "median s": ("median_s", 1), "Mvoxels/s": ("voxels_per_s", 1e6),
           "volumes/h": ("volumes_per_hour", 1), "serial s": ("serial_s", 1), "peak MB": ("peak_bytes", 1e6),
           "GFLOP/s": ("flops_per_s", 1e9), "GB/s": ("bytes_per_s", 1e9), "% of peak": ("peak_share", 0.01),
           "compute floor s": ("floor_compute_s", 1), "memory floor s": ("floor_memory_s", 1),
           "peer s": ("peer_median_s", 1), "ratio": ("ratio", 1), "compiled s": ("peer_compiled_median_s", 1),
           "its ratio": ("ratio_compiled", 1), "% of work": ("flops_share", 0.01),
           "collectives MB": ("communication_bytes", 1e6), "cold s": ("cold_s", 1), "restore s": ("restore_s", 1),
           "help s": ("help_s", 1)}  # fmt: skip


def main() -> None:
    """Entry point of the command."""
    cli.run(_main)


def _main() -> None:
    parser = cli.Parser("jaxsynth.bench", __doc__)
    parser.add_argument("--suite", required=True, help=f"{', '.join(SUITES)} or all")
    parser.add_argument(
        "--case", help=f"default: every one of {', '.join(case for cases in SUITES.values() for case in cases)}"
    )
    parser.add_argument(
        "--peer", help=f"torch: run the PyTorch twin on the same work (suites {', '.join(_suites_with('peer'))})"
    )
    parser.add_argument(
        "--profile",
        metavar="DIR",
        help="trace one more run of each case, after those measured, into DIR/SUITE_CASE "
        f"(suites {', '.join(_suites_with('profile'))})",
    )
    args = parser.parse_args()
    cli.keep_memory()  # as train and sample do; a peer in this process profits too
    if args.suite not in (*SUITES, "all"):
        raise InputError(f"--suite: expected one of {', '.join(SUITES)}, all; got {args.suite!r}")
    there = [(suite, case) for suite, cases in SUITES.items() if args.suite in (suite, "all") for case in cases]
    asked = [(suite, case) for suite, case in there if args.case in (None, case)]
    if not asked:
        raise InputError(f"--case: expected one of {', '.join(case for _, case in there)}; got {args.case!r}")
    for option in OPTIONS:
        if getattr(args, option) and not any(_takes(*one, option) for one in asked):
            which = f"--suite {args.suite}" + (f" --case {args.case}" if args.case else "")
            raise InputError(f"--{option}: only for cases of suites {', '.join(_suites_with(option))}, not for {which}")
    bench_peer.check(args.peer)
    rows, failed = [], False
    for suite, case in asked:
        slow = (suite, case) in SLOW_ON_CPU and rows and "CPU cores" in rows[-1]["device"]
        if slow and args.suite == "all" and not args.case:
            print(f"{suite} {case}: left out, ten minutes on a CPU; --case {case} runs it", file=sys.stderr)
            continue
        options = {option: getattr(args, option) for option in OPTIONS if _takes(suite, case, option)}
        options = {option: value for option, value in options.items() if value}
        # Apart, as an accelerator reports the peak of a whole process, and programs compile faster beside their like.
        found = measure(suite, case, **options) if len(asked) == 1 else _apart(suite, case, options)
        if found is None:
            failed = True
            continue
        rows.append(found)
        print(json.dumps(found, allow_nan=False), flush=True)
    print(table(rows), file=sys.stderr)
    if failed:
        sys.exit(1)


def _takes(suite: str, case: str, option: str) -> bool:
    return option in inspect.signature(SUITES[suite][case]).parameters


def _suites_with(option: str) -> list[str]:
    return [suite for suite, cases in SUITES.items() if any(_takes(suite, case, option) for case in cases)]


def _apart(suite: str, case: str, options: dict) -> dict | None:
    """The row of a case that runs in a process of its own; None where it failed. On stderr where its trace lies, or its
    last words."""
    words = [sys.executable, "-m", "jaxsynth.bench", "--suite", suite, "--case", case]
    words += itertools.chain(*((f"--{option}", value) for option, value in options.items()))
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        print(f"{suite} {case} failed with status {done.returncode}:\n{done.stderr}", file=sys.stderr)
        return None
    for line in done.stderr.splitlines():
        if line.startswith("trace:"):
            print(line, file=sys.stderr)
    return json.loads(done.stdout)


def measure(suite: str, case: str, *, profile: str | None = None, **options) -> dict:
    """The row of a case: KEYS, and what the case adds; None is what it does not have.

    Args:
      profile: folder of traces, for a case that takes one.
      options: peer, one of bench_peer.PEERS, for a case that takes one.
    """
    import jax

    jax.config.update("jax_enable_compilation_cache", False)
    versions = {package: metadata.version(package) for package in ("jaxsynth", "jax", "jaxlib", "numpy")}
    versions["python"] = platform.python_version()
    if profile:
        options["profile"] = Path(profile) / f"{suite}_{case}"
    row = dict.fromkeys(KEYS) | {"suite": suite, "case": case, "versions": versions} | SUITES[suite][case](**options)
    # Not before: a case that starts other processes leaves the accelerator to them.
    row["device"] = bench_device.device()
    median_s = row["median_s"]
    row["voxels_per_s"] = math.prod(row["shape"]) / median_s if row["shape"] and median_s else None
    row["ratio"] = row["peer_median_s"] and row["peer_median_s"] / median_s
    if "peer_compiled_median_s" in row:
        row["ratio_compiled"] = row["peer_compiled_median_s"] and row["peer_compiled_median_s"] / median_s
    return row


def table(rows: list[dict]) -> str:
    """The rows as text: a block per suite, one line each below a heading, without columns that would be empty; then
    the rows' notes."""
    return "\n\n".join(_block(list(group)) for _, group in itertools.groupby(rows, lambda row: row.get("suite")))


def _block(rows: list[dict]) -> str:
    columns = {name: at for name, at in COLUMNS.items() if any(row.get(at[0]) is not None for row in rows)}
    lines = [("case", "shape", *columns)]
    for row in rows:
        numbers = (_number(row.get(key), unit) for key, unit in columns.values())
        lines.append((row["case"], " x ".join(map(str, row["shape"] or ())), *numbers))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    notes = [(row["case"], who, row.get(key)) for row in rows for who, key in (("ours", "note"), ("peer", "peer_note"))]
    return "\n".join(texts + [f"{case}, {who}: {note}" for case, who, note in notes if note])


def _number(value: float | dict | None, unit: float) -> str:
    value = sum(value.values()) if isinstance(value, dict) else value
    return "" if value is None else f"{value / unit:.4g}"


SUITES = {
    "sim": {
        "celegans": functools.partial(bench_sim.specimen, "celegans", 60, 4.5),
        "gowt1": functools.partial(bench_sim.specimen, "gowt1", 30, 2.4),
        "hela": functools.partial(bench_sim.specimen, "hela", 150, 3.2),
        "tribolium": functools.partial(bench_sim.specimen, "tribolium", 3000, 100.0),
        "harmonics": functools.partial(bench_sim.specimen, "harmonics", 200, 417.0),
        "arabidopsis": functools.partial(bench_sim.specimen, "arabidopsis", None),
        "danio": functools.partial(bench_sim.specimen, "danio", 1800),
        "drosophila": functools.partial(bench_sim.specimen, "drosophila", None),
        "embryo_elongated": functools.partial(bench_sim.specimen, "embryo_elongated", 200),
        "stream": functools.partial(bench_sim.training, "nuclei", (128, 128)),
    },
    "sample": {
        "image_256": functools.partial(bench_sample.sketch_to_image, (256, 256), complete=True),
        "image_1024": functools.partial(bench_sample.sketch_to_image, (1024, 1024)),
        "volume": functools.partial(bench_sample.sketch_to_image, (51, 128, 128)),
        "volume_large": functools.partial(bench_sample.sketch_to_image, (180, 512, 512), one_on_cpu=True, rounds=1),
        "step_2d": functools.partial(bench_sample.evaluation, (256, 256)),
        "step_3d": functools.partial(bench_sample.evaluation, (32, 128, 128)),
        "generate_2d": functools.partial(bench_generate.generate, (256, 256)),
        "generate_3d": functools.partial(bench_generate.generate, (32, 128, 128), num=3, rounds=1),
    },
    "train": {
        "train_2d": functools.partial(bench_train.step, (256, 256), rounds=10),
        "train_3d": functools.partial(bench_train.step, (32, 128, 128)),
        "train_2d_group": functools.partial(bench_train.step, (128, 128), batch=8, norm="group", rounds=5),
        "train_3d_group": functools.partial(bench_train.step, (32, 64, 64), norm="group", rounds=5),
        "sharded_data_8": functools.partial(bench_train.split, (32, 64, 64), batch=8, space=1),
        "sharded_space_8": functools.partial(bench_train.split, (32, 128, 128), batch=1, space=8),
    },
    "gan": {
        "gan_train_2d": functools.partial(bench_gan.step, (256, 256), rounds=10),
        "gan_train_3d": functools.partial(bench_gan.step, (64, 128, 128)),
        "gan_generate": functools.partial(bench_gan.generation, (48, 128, 128)),
    },
    "start": {"start": bench_start.start},
    "device": {"matmul": bench_device.matmul, "copy": bench_device.copy},
}


if __name__ == "__main__":
    main()
