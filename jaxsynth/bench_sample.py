"""The cases of the benchmark suite `sample`: sketch to image, and the PyTorch twin at the same work.

Weights are random, which costs no other time than trained ones. Both sides are warm and take turns in one process, so
that other load on the machine hits both.
"""

import math
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from jaxsynth import bench_device, bench_peer, cli

KEYS = ("evaluations", "peer_evaluations", "overhead", "work", "note", "peer_note")
CONFIG = Path(__file__).parent.parent / "configs" / "ddpm.py"
# The published tiling: tile and stride, voxels. These 3D strides are the ones that cost the published 5.45 times the
# work of 180 x 512 x 512 voxels at once (490 tiles); no stride is published in 2D: half a tile, as in the plane in 3D.
PUBLISHED_TILING = {2: ((256, 256), (128, 128)), 3: ((32, 128, 128), (18, 64, 64))}


def sketch_to_image(
    shape: tuple[int, ...],
    *,
    peer: str | None = None,
    profile: Path | None = None,
    complete: bool = False,
    one_on_cpu: bool = False,
    t_start: int = 400,
    evaluations: int | None = None,
    features: int = 16,
    tiling: tuple[tuple[int, ...], tuple[int, ...]] | None = None,
    rounds: int = 2,
    peer_runs: int = 10,
) -> dict:
    """A sketch made an image by this package's defaults; by the twin with DDPM from t_start, each tile on its own.

    Args:
      shape: of the image, voxels.
      peer: `torch`, or None to measure this package alone.
      profile: folder for a trace of one more run of ours.
      complete: the twin denoises every tile to the end. Else one step on one tile is timed peer_runs times a round and
        multiplied: all steps and tiles are equal work, so this favours the twin, whose blending is left out.
      one_on_cpu: on a CPU one evaluation is timed and multiplied.
      evaluations: of this package's network; None: the default.
      tiling: the twin's tile and stride; None: the published.

    Returns:
      The row's shape, times, peak_bytes and KEYS. peak_bytes is what the accelerator reports, or what the process
      grew by while the image was made.
    """
    import jax

    from jaxsynth import keys, trained
    from jaxsynth.diffusion import samplers
    from jaxsynth.nn import unet

    module = bench_peer.load() if peer else None
    model = untrained(len(shape), features)
    plan = trained.make_plan(model, t_start, num_evaluations=evaluations)
    grid = trained.grid_for(model, shape)
    shrink, deepen, whole = unet.operations(len(shape), features)
    row = {"shape": shape, "evaluations": plan.num_evaluations, "overhead": grid.overhead}
    row["work"] = grid.work(shrink / whole, deepen / whole)
    factor = 1
    if one_on_cpu and jax.default_backend() == "cpu":
        factor, plan = plan.num_evaluations, trained.make_plan(model, t_start, num_evaluations=1)
        row["note"] = f"one evaluation timed and multiplied by {factor}"
    make = trained.generator(model)
    sketch = jax.random.uniform(keys.stream(keys.root(0), "sketch"), shape, minval=-1.0)
    ours, first_s, row["peak_bytes"] = _warm(lambda: make(keys.root(0), sketch, plan, sigma=1.0))
    sides = [(ours, 1)]
    if module is not None:
        tile, stride = tiling or PUBLISHED_TILING[len(shape)]
        tile = tuple(min(sizes) for sizes in zip(tile, shape, strict=True))
        count = num_tiles(shape, tile, stride)
        forward, inputs = bench_peer.forward(module, tile, features)
        step = tile_step(forward, inputs, samplers.make_plan("ddpm", model.parts.schedule, t_start))
        step(0)
        if complete:
            sides.append((lambda: [step(k) for _ in range(count) for k in range(t_start)], 1))
            peer_factor, how = 1, "run completely"
        else:
            sides.append((lambda: step(0), peer_runs))
            peer_factor = t_start * count
            how = f"one tile-step timed {rounds * peer_runs} times and multiplied"
    spent, *peer_spent = bench_device.turns(rounds, *sides)
    if peer_spent:
        tiles = f"{count} tile{'s' * (count > 1)} of {_by(tile)}, stride {_by(stride)}"
        work = count * math.prod(tile) / math.prod(shape)
        row |= bench_peer.named(peer_spent[0], peer_factor, "DDPM") | {"peer_evaluations": t_start}
        row["peer_note"] = f"{t_start} steps x {tiles}, {work:.3g} times the voxels; {how}"
    with bench_device.traced(profile):
        ours()
    median_s = statistics.median(spent)
    return dict.fromkeys(KEYS) | row | {"compile_s": max(0.0, first_s - median_s), "median_s": factor * median_s}


def evaluation(
    shape: tuple[int, ...],
    *,
    peer: str | None = None,
    profile: Path | None = None,
    features: int = 16,
    rounds: int = 10,
    compiler: str = "inductor",
) -> dict:
    """One forward pass of the published network, the same on both sides: instance norm, two input channels.

    Args:
      compiler: backend of torch.compile, for the compiled peer.

    Returns:
      The row's shape, times, peak_bytes, KEYS, bench_device.RATES and, with a peer, bench_peer.KEYS.
    """
    import jax
    import jax.numpy as jnp

    from jaxsynth import keys
    from jaxsynth.nn import unet
    from jaxsynth.tasks import ddpm

    module = bench_peer.load() if peer else None
    model = untrained(len(shape), features, "instance", noise_channel=True)
    x, cond = jax.random.normal(keys.root(0), (2, 1, *shape, 1))
    inputs = model.params, x, jnp.array([200]), cond
    program, compile_s = bench_device.compiled(lambda p, x, t, cond: ddpm.denoiser(model.parts, p)(x, t, cond), *inputs)
    row = dict.fromkeys(KEYS) | {"shape": shape, "evaluations": 1, "overhead": 1.0, "work": 1.0}
    row["compile_s"] = compile_s

    def ours():
        return program(*inputs).block_until_ready()

    def theirs(compiler):
        forward, x = bench_peer.forward(module, shape, features, compiler)
        return lambda: forward(x, 200)

    ours()
    row["peak_bytes"] = bench_device.peak_bytes(program)  # not before: an accelerator tells what was, not what will be
    if peer:
        spent, beside = bench_peer.beside(ours, theirs, "forward", rounds, compiler)
        row |= beside | {"peer_evaluations": 1}
    else:
        (spent,) = bench_device.turns(rounds, (ours, 1))
    row["median_s"] = statistics.median(spent)
    flops = 2 * unet.operations(len(shape), features, 2)[2] * math.prod(shape)
    row |= bench_device.rates(flops, program, row["median_s"])
    with bench_device.traced(profile):
        ours()
    return row


def untrained(ndim: int, features: int = 16, norm: str = "group", *, noise_channel: bool = False):
    """The model of configs/ddpm.py with random weights, in bfloat16 where there is a GPU: a `trained.Trained`."""
    import jax
    import numpy as np

    from jaxsynth import devices, keys
    from jaxsynth.tasks import ddpm
    from jaxsynth.trained import Trained

    overrides = {"features": features, "norm": norm, "noise_channel": noise_channel, "bfloat16": bench_device.on_gpu()}
    config = cli.read_config(str(CONFIG), [f"--config.model.{name}={value}" for name, value in overrides.items()])
    config.data.patch = (8,) * ndim
    parts, mesh = ddpm.build(config), devices.make_mesh()
    like = jax.eval_shape(lambda key: ddpm.init(parts, key, (1, *config.data.patch, 1)).params, keys.root(0))
    rng = np.random.default_rng(0)  # drawn on the host, which needs no compiling
    params = jax.tree.map(lambda x: rng.normal(0, math.prod(x.shape[:-1]) ** -0.5, x.shape).astype(x.dtype), like)
    params = jax.device_put(params, devices.replicated(mesh))
    return Trained(folder=None, metadata={}, config=config, intensity=None, parts=parts, params=params, mesh=mesh)


def tile_step(forward: Callable, inputs, plan) -> Callable[[int], object]:
    """step(k): the tile after evaluation k of `plan`, whose from_previous is 0; step(0) begins anew.

    Args:
      forward, inputs: see `bench_peer.forward`; the first channel of inputs is the noised tile, the second the
        network's constant.
    """
    import torch

    begin, cond = inputs.split(1, dim=1)
    names = ("t", "x0_from_xt", "x0_from_prediction", "from_x", "from_x0", "std")
    rows = list(zip(*(getattr(plan, name).tolist() for name in names), strict=True))
    state = begin

    @torch.inference_mode()
    def step(k: int):
        nonlocal state
        t, x0_from_xt, x0_from_prediction, from_x, from_x0, std = rows[k]
        x = begin if k == 0 else state
        x0 = (x0_from_xt * x + x0_from_prediction * forward(torch.cat([x, cond], dim=1), t)).clamp(-1, 1)
        state = from_x * x + from_x0 * x0 + std * torch.randn_like(x)
        return state

    return step


def num_tiles(shape: tuple[int, ...], tile: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Tiles that begin at multiples of `stride`, as many as it takes to reach the end of every axis."""
    return math.prod(max(0, -(-(n - t) // s)) + 1 for n, t, s in zip(shape, tile, stride, strict=True))


def _warm(run: Callable) -> tuple[Callable, float, int | None]:
    """`run` made to wait for its result; the seconds of a first call, and what that took of memory, where it shows."""
    import jax

    def ours():
        return jax.block_until_ready(run())

    def most():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    before = most()
    began = time.perf_counter()
    ours()
    seconds = time.perf_counter() - began
    reported = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return ours, seconds, reported or most() - before or None


def _by(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))
