"""Measures speed and memory: one JSON object per line on stdout, then a table on stderr.

    python -m jaxsynth.bench --suite sim
    python -m jaxsynth.bench --suite sim --case celegans
    python -m jaxsynth.bench --suite sample --peer torch

Times are of the steady state, results left on the device: the median of several runs. compile_s is what a first call
costs on top of that, without a compilation cache. peak_bytes is what the program holds at once: arguments, results and
temporaries, or what the accelerator reports. peer names another program and where it was timed; ratio =
peer_median_s / median_s. Every case runs in a process of its own.

Suite sim makes labels and sketch of one specimen at the paper's size. Its case stream is a step of training on images
of simulated specimens, with the keys steps_per_s and wait_share: the share of its time that the same step saves on a
batch that is there already, below 0 where that is lost in the noise.

Suite sample makes an image of a sketch with the default sampler from t_start 400: image_256, image_1024, volume
(51 x 128 x 128) and volume_large (180 x 512 x 512; on a CPU one evaluation, multiplied); step_2d and step_3d are one
evaluation of the published network. --peer torch runs the PyTorch twin of tests/peers in turns with it: 400 DDPM steps
on every tile of the published tiling, each tile on its own; all but image_256 time single steps on single tiles and
multiply, as peer_note says. overhead is evaluated voxels over the image's, work operations over
those of the untiled network; peak_bytes, on a CPU, what the process grew.
"""

import functools
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from jaxsynth import bench_sample, cli
from jaxsynth.errors import InputError

KEYS = ("suite", "case", "shape", "num_cells", "device", "compile_s", "median_s", "voxels_per_s", "peak_bytes",
        "versions", "peer", "peer_median_s", "ratio")  # fmt: skip
PUBLISHED = "published NumPy program, two CPU cores, as recorded"
SECONDS = 5.0  # of measuring per case, at least three runs
ROUNDS = 3  # of alternating between a fed and an unfed training
RUN_AHEAD = 4  # steps the host may be ahead of the device, as in `train`


def main() -> None:
    """Entry point of the command."""
    cli.run(_main)


def _main() -> None:
    parser = cli.Parser("jaxsynth.bench", __doc__)
    parser.add_argument("--suite", required=True, help=f"{', '.join(SUITES)} or all")
    parser.add_argument(
        "--case", help=f"default: every one of {', '.join(case for cases in SUITES.values() for case in cases)}"
    )
    parser.add_argument("--peer", help="torch: run the PyTorch twin on the same work (suite sample)")
    args = parser.parse_args()
    if args.suite not in (*SUITES, "all"):
        raise InputError(f"--suite: expected one of {', '.join(SUITES)}, all; got {args.suite!r}")
    there = [(suite, case) for suite, cases in SUITES.items() if args.suite in (suite, "all") for case in cases]
    asked = [(suite, case) for suite, case in there if args.case in (None, case)]
    if not asked:
        raise InputError(f"--case: expected one of {', '.join(case for _, case in there)}; got {args.case!r}")
    if args.peer and "sample" not in (suite for suite, _ in asked):
        raise InputError(f"--peer: only suite sample can be run against a peer, got --suite {args.suite}")
    bench_sample.check_peer(args.peer)
    rows = []
    for suite, case in asked:
        peer = args.peer if suite == "sample" else None
        # Apart, as an accelerator reports the peak of a whole process, and programs compile faster beside their like.
        found = measure(suite, case, peer) if len(asked) == 1 else _apart(suite, case, peer)
        if found is not None:
            rows.append(found)
            print(json.dumps(found, allow_nan=False), flush=True)
    print(table(rows), file=sys.stderr)
    if len(rows) < len(asked):
        sys.exit(1)


def _apart(suite: str, case: str, peer: str | None = None) -> dict | None:
    """The row of a case that runs in a process of its own; None where it failed, with its last words on stderr."""
    words = [sys.executable, "-m", "jaxsynth.bench", "--suite", suite, "--case", case]
    words += ["--peer", peer] if peer else []
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        print(f"{suite} {case} failed with status {done.returncode}:\n{done.stderr}", file=sys.stderr)
        return None
    return json.loads(done.stdout)


def measure(suite: str, case: str, peer: str | None = None) -> dict:
    """The row of a case: KEYS, and what the case adds; `peer` is one of bench_sample.PEERS."""
    import jax

    jax.config.update("jax_enable_compilation_cache", False)
    versions = {package: metadata.version(package) for package in ("jaxsynth", "jax", "jaxlib", "numpy")}
    versions["python"] = platform.python_version()
    row = dict.fromkeys(KEYS) | {"suite": suite, "case": case, "device": device(), "versions": versions}
    row |= SUITES[suite][case](**({"peer": peer} if peer else {}))
    row["voxels_per_s"] = math.prod(row["shape"]) / row["median_s"]
    row["ratio"] = row["peer_median_s"] and row["peer_median_s"] / row["median_s"]
    return row


def table(rows: list[dict]) -> str:
    """The rows as text, one line each below a heading, without columns that would be empty; then the rows' notes."""
    columns = {"cells": ("num_cells", 1), "evals": ("evaluations", 1), "overhead": ("overhead", 1), "work": ("work", 1),
               "compile s": ("compile_s", 1), "median s": ("median_s", 1), "Mvoxels/s": ("voxels_per_s", 1e6),
               "peak MB": ("peak_bytes", 1e6), "peer s": ("peer_median_s", 1), "ratio": ("ratio", 1)}  # fmt: skip
    columns = {name: at for name, at in columns.items() if any(row.get(at[0]) is not None for row in rows)}
    lines = [("case", "shape", *columns)]
    for row in rows:
        numbers = [None if row.get(key) is None else f"{row[key] / unit:.4g}" for key, unit in columns.values()]
        lines.append((row["case"], " x ".join(map(str, row["shape"])), *(number or "" for number in numbers)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    notes = [(row["case"], who, row.get(key)) for row in rows for who, key in (("ours", "note"), ("peer", "peer_note"))]
    return "\n".join(texts + [f"{case}, {who}: {note}" for case, who, note in notes if note])


def device() -> str:
    """The default device, in words; of a CPU the number of cores too."""
    import jax

    kind = jax.devices()[0].device_kind
    return f"{len(os.sched_getaffinity(0))} CPU cores ({platform.machine()})" if kind == "cpu" else kind


def compiled(function: Callable, *arguments, **options) -> tuple[Callable, float]:
    """The program that jit makes of a function, with options of jit, and the seconds that takes."""
    import jax

    began = time.perf_counter()
    program = jax.jit(function, **options).lower(*arguments).compile()
    return program, time.perf_counter() - began


def peak_bytes(program, beside: int = 0) -> int:
    """What the device held at once; where it does not say, what a program needs, and arrays `beside` it."""
    import jax

    reported = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    size = program.memory_analysis()
    needed = size.argument_size_in_bytes + size.output_size_in_bytes + size.temp_size_in_bytes
    return reported or needed - size.alias_size_in_bytes + beside


def times(run: Callable[[], object]) -> Iterator[float]:
    """Seconds of each of at least three runs, for SECONDS in all."""
    import jax

    end = time.perf_counter() + SECONDS
    for count in itertools.count():
        if count >= 3 and time.perf_counter() > end:
            return
        began = time.perf_counter()
        jax.block_until_ready(run())
        yield time.perf_counter() - began


def specimen(recipe: str, num_cells: int | None, published_s: float | None = None, shape=None) -> dict:
    """Labels and sketch of one specimen of so many cells (None: the recipe fills its organism), as one program with the
    room that it needs; `published_s` is what the published program takes, `shape` by default the paper's."""
    import jax.numpy as jnp

    from jaxsynth import keys
    from jaxsynth.sim import tissues, views

    found = tissues.find(recipe)
    shape = shape or found.shape
    spacing_um = tissues.default_spacing(found, shape)
    site = tissues.make_site(found, shape, spacing_um, num_cells or 0)
    arguments = keys.root(0), jnp.int32(num_cells or 0)
    compile_s, crowded, short = 0.0, True, False
    while crowded or short:

        def draw(key, number, site=site):
            made = tissues.specimen(key, found, number, site)
            drawn = views.sketch(keys.stream(key, "sketch"), made, spacing_um, nucleoli=found.nucleoli)
            return made.labels, drawn, made.num_asked, made.num_placed, made.crowded, made.short

        # Whoever wants one specimen waits for the programs that had too little room, too.
        program, seconds = compiled(draw, *arguments)
        compile_s += seconds
        labels, _, asked, placed, crowded, short = program(*arguments)
        site = tissues.more_room(site, bool(crowded), bool(short))
    if not labels.any() or placed < 0.95 * asked:
        raise RuntimeError(f"{recipe}: placed {placed} of {asked} cells, which is not what is to be measured")
    del labels, _  # else they would lie beside the results of the runs to come
    row = {"shape": shape, "num_cells": int(placed), "compile_s": compile_s}
    row |= {"median_s": statistics.median(times(lambda: program(*arguments))), "peak_bytes": peak_bytes(program)}
    return row | ({"peer": PUBLISHED, "peer_median_s": published_s} if published_s else {})


def training(recipe: str, shape: tuple[int, ...], **overrides) -> dict:
    """A step of configs/ddpm.py, `section__key` overridden, on images of simulated specimens, against the same step on
    one resident batch. Both run as in `train`, in turns; the clock stops when all that was queued is done."""
    import jax
    import numpy as np

    from jaxsynth import keys
    from jaxsynth.data import stream
    from jaxsynth.data.intensity import fit, normalise
    from jaxsynth.tasks import ddpm

    path = Path(__file__).parent.parent / "configs" / "ddpm.py"
    config = cli.read_config(str(path), [f"--config.{k.replace('__', '.')}={v}" for k, v in overrides.items()])
    key, batch_size = keys.root(config.seed), config.data.batch_size
    parts = ddpm.build(config)
    state = jax.jit(lambda k: ddpm.init(parts, k, (batch_size, *shape, 1)))(keys.stream(key, "init"))
    began = time.perf_counter()
    feed = stream.simulated(recipe, keys.stream(key, "specimens"), shape=shape, batch_size=batch_size, maps=("image",))
    first = next(feed)
    resident = jax.block_until_ready(first.maps["image"])
    compile_s = time.perf_counter() - began
    intensity = fit(list(np.asarray(resident)), config.data.normalization)

    def step(state, counts):
        return ddpm.step(parts, state, normalise(counts, intensity)[..., None], keys.stream(key, "train"))

    program, seconds = compiled(step, state, resident, donate_argnums=0)

    def run(batches, count):
        """Seconds per step."""
        nonlocal state
        began, pending = time.perf_counter(), []
        for batch in itertools.islice(batches, count):
            state, values = program(state, batch)
            pending.append(values)
            if len(pending) > RUN_AHEAD:
                jax.block_until_ready(pending[-RUN_AHEAD])
        jax.block_until_ready(jax.live_arrays())
        return (time.perf_counter() - began) / count

    images = (batch.maps["image"] for batch in feed)
    count = max(3, round(SECONDS / run(itertools.repeat(resident), 2)))
    turns = [(run(itertools.repeat(resident), count), run(images, count)) for _ in range(ROUNDS)]
    alone, fed = map(statistics.median, zip(*turns, strict=True))
    ahead = stream.AHEAD * sum(x.nbytes for x in jax.tree.leaves(first))
    row = {"shape": (batch_size, *shape), "compile_s": compile_s + seconds, "median_s": fed}
    row |= {"peak_bytes": peak_bytes(program, ahead), "steps_per_s": 1 / fed}
    return row | {"wait_share": 1 - alone / fed}


SUITES = {
    "sim": {
        "celegans": functools.partial(specimen, "celegans", 60, 4.5),
        "gowt1": functools.partial(specimen, "gowt1", 30, 2.4),
        "hela": functools.partial(specimen, "hela", 150, 3.2),
        "tribolium": functools.partial(specimen, "tribolium", 3000, 100.0),
        "harmonics": functools.partial(specimen, "harmonics", 200, 417.0),
        "arabidopsis": functools.partial(specimen, "arabidopsis", None),
        "danio": functools.partial(specimen, "danio", 1800),
        "drosophila": functools.partial(specimen, "drosophila", None),
        "embryo_elongated": functools.partial(specimen, "embryo_elongated", 200),
        "stream": functools.partial(training, "nuclei", (128, 128)),
    },
    "sample": {
        "image_256": functools.partial(bench_sample.sketch_to_image, (256, 256), complete=True),
        "image_1024": functools.partial(bench_sample.sketch_to_image, (1024, 1024)),
        "volume": functools.partial(bench_sample.sketch_to_image, (51, 128, 128)),
        "volume_large": functools.partial(bench_sample.sketch_to_image, (180, 512, 512), one_on_cpu=True, rounds=1),
        "step_2d": functools.partial(bench_sample.evaluation, (256, 256)),
        "step_3d": functools.partial(bench_sample.evaluation, (32, 128, 128)),
    },
}


if __name__ == "__main__":
    main()
