"""The cases of the benchmark suite `sim`: specimens, and training on them."""

import itertools
import statistics
import time
from pathlib import Path

from jaxsynth import bench_device, cli

PUBLISHED = "published NumPy program, two CPU cores, as recorded"
CONFIG = Path(__file__).parent.parent / "configs" / "ddpm.py"
ROUNDS = 3  # of alternating between a fed and an unfed training
RUN_AHEAD = 4  # steps the host may be ahead of the device, as in `train`


def specimen(recipe: str, num_cells: int | None, published_s: float | None = None, *, shape=None, profile=None) -> dict:
    """Labels and sketch of one specimen of so many cells (None: the recipe fills its organism), as one program with the
    room that it needs; `published_s` is what the published program takes, `shape` by default the paper's."""
    import jax
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
        program, seconds = bench_device.compiled(draw, *arguments)
        compile_s += seconds
        labels, _, asked, placed, crowded, short = program(*arguments)
        site = tissues.more_room(site, bool(crowded), bool(short))
    if not labels.any() or placed < 0.95 * asked:
        raise RuntimeError(f"{recipe}: placed {placed} of {asked} cells, which is not what is to be measured")
    del labels, _  # else they would lie beside the results of the runs to come
    row = {"shape": shape, "num_cells": int(placed), "compile_s": compile_s}
    row |= {"median_s": statistics.median(bench_device.times(lambda: program(*arguments)))}
    row |= {"peak_bytes": bench_device.peak_bytes(program)}
    with bench_device.traced(profile):
        jax.block_until_ready(program(*arguments))
    return row | ({"peer": PUBLISHED, "peer_median_s": published_s} if published_s else {})


def training(recipe: str, shape: tuple[int, ...], *, profile=None, **overrides) -> dict:
    """A step of configs/ddpm.py, `section__key` overridden, on images of simulated specimens, against the same step on
    one resident batch. Both run as in `train`, in turns; the clock stops when all that was queued is done."""
    import jax
    import numpy as np

    from jaxsynth import keys
    from jaxsynth.data import stream
    from jaxsynth.data.intensity import fit, normalise
    from jaxsynth.tasks import ddpm

    config = cli.read_config(str(CONFIG), [f"--config.{k.replace('__', '.')}={v}" for k, v in overrides.items()])
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

    program, seconds = bench_device.compiled(step, state, resident, donate_argnums=0)

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
    count = max(3, round(bench_device.SECONDS / run(itertools.repeat(resident), 2)))
    turns = [(run(itertools.repeat(resident), count), run(images, count)) for _ in range(ROUNDS)]
    alone, fed = map(statistics.median, zip(*turns, strict=True))
    ahead = stream.AHEAD * sum(x.nbytes for x in jax.tree.leaves(first))
    row = {"shape": (batch_size, *shape), "compile_s": compile_s + seconds, "median_s": fed}
    row |= {"peak_bytes": bench_device.peak_bytes(program, ahead), "steps_per_s": 1 / fed}
    with bench_device.traced(profile):
        run(images, ROUNDS)
    return row | {"wait_share": 1 - alone / fed}
