"""Turns sketches, given or simulated, into realistic annotated images with a trained diffusion model.

    python -m jaxsynth.sample --checkpoint runs/mine --recipe nuclei --num 20 --out runs/mine/dataset
    python -m jaxsynth.sample --checkpoint runs/mine --sketches DIR/sketches --out runs/mine/dataset

OUT gets `images/`, `labels/` and `sketches/` with equal names, and `manifest.json` with all that is needed to make
any file again. Each file depends on the seed and its own name alone; finished files are skipped on a second run.
"""

import argparse
import dataclasses
import datetime
import functools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

from jaxsynth import cli
from jaxsynth import manifest as manifests
from jaxsynth.errors import InputError

FOLDERS = ("labels", "sketches", "images")  # written in this order: a file with an image is finished
TILES = {2: ((512, 512), (32, 32)), 3: ((64, 128, 128), (16, 32, 32))}  # largest tile and least overlap, voxels
CHUNK_S = 5.0  # a progress line about this often


@dataclasses.dataclass(frozen=True)
class Job:
    """One file to make: its name, and a function that returns (labels int32 [*S] or None, sketch float32 [*S],
    spacing_um or None)."""

    name: str
    source: str
    draw: Callable


def main() -> None:
    """Entry point of the command."""
    cli.run(_main)


def _main() -> None:
    args = _parse()
    cli.enable_compilation_cache()
    sample(args)


def _parse() -> argparse.Namespace:
    parser = cli.Parser("jaxsynth.sample", __doc__)
    parser.add_argument("--checkpoint", required=True, help="a training run's folder, or one checkpoint in it")
    parser.add_argument("--step", default="best", help="which checkpoint: best, latest or a step (default: best)")
    parser.add_argument("--out", required=True, help="folder of the data set")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--sketches", help="folder of sketches, float in [-1, 1], as jaxsynth.simulate writes them")
    source.add_argument("--recipe", help="simulate cells of this kind: see jaxsynth.simulate")
    parser.add_argument("--labels", help="label images of the sketches (default: the folder labels beside them)")
    parser.add_argument("--num", type=int, help="how many images (default: all sketches, or 10)")
    parser.add_argument(
        "--shape",
        type=cli.numbers(int),
        metavar="Z,Y,X",
        help="size of simulated images, Y,X or Z,Y,X (default: the training images' or the recipe's)",
    )
    parser.add_argument("--cells", type=int, help="cells per simulated image (default: drawn from the recipe's range)")
    parser.add_argument(
        "--spacing_um",
        type=cli.numbers(float),
        metavar="Z,Y,X",
        help="voxel size of simulated images (default: the training images')",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--t_start", type=int, default=400, help="noise level of the start (default: 400)")
    parser.add_argument("--num_steps", type=int, help="network evaluations, respaced (default: t_start)")
    parser.add_argument("--variance", default="fixed_large", help="fixed_large (published) or fixed_small")
    parser.add_argument("--sigma", type=float, default=1.0, help="blur of the sketch, voxels (default: 1)")
    parser.add_argument(
        "--tile",
        type=cli.numbers(int),
        metavar="Z,Y,X",
        help="largest tile, Y,X or Z,Y,X voxels (default: 512,512 or 64,128,128)",
    )
    parser.add_argument(
        "--overlap",
        type=cli.numbers(int),
        metavar="Z,Y,X",
        help="least overlap of tiles, voxels (default: 32,32 or 16,32,32)",
    )
    parser.add_argument("--tile_batch", type=int, help="tiles evaluated at once (default: one per device)")
    return parser.parse_args()


def sample(args: argparse.Namespace) -> None:
    """Makes the data set that `args` (see `_parse`) describes.

    Raises:
      InputError: unusable arguments or files; nothing has been written then.
    """
    import jax
    import numpy as np
    from ml_collections import ConfigDict

    from jaxsynth import checkpoint, devices, keys
    from jaxsynth.data import intensity as intensities
    from jaxsynth.data import tiles, volumes
    from jaxsynth.diffusion import samplers
    from jaxsynth.sim.sketch import blur
    from jaxsynth.tasks import ddpm

    # The trained network.
    mesh = devices.make_mesh()
    metadata = checkpoint.read_metadata(args.checkpoint, args.step)
    config = ConfigDict(metadata["config"])
    if config.task != "ddpm":
        raise InputError(f"--checkpoint {args.checkpoint} is of task {config.task!r}, which samples no images")
    intensity = intensities.Intensity.from_dict(metadata["intensity"])
    parts = ddpm.build(config)
    if not 1 <= args.t_start <= parts.t_max:
        raise InputError(f"--t_start must lie in 1..{parts.t_max}, what this model was trained on; got {args.t_start}")
    plan = samplers.ddpm_plan(parts.schedule, args.t_start, num_steps=args.num_steps, variance=args.variance)
    num_steps = plan.t.shape[0]
    ndim = len(config.data.patch)
    tile = _per_axis("--tile", args.tile, ndim, 8) or TILES[ndim][0]
    overlap = _per_axis("--overlap", args.overlap, ndim, 0) or TILES[ndim][1]
    tiles.plan_tiles((2 * max(tile),) * ndim, tile, overlap)  # says so where they do not go together
    if args.sigma < 0:
        raise InputError(f"--sigma must not be negative, got {args.sigma}")
    if args.num is not None and args.num < 1:
        raise InputError(f"--num must be at least 1, got {args.num}")

    # What is to be made.
    root = keys.root(args.seed)
    jobs = _given(args, ndim, metadata) if args.sketches else _simulated(args, ndim, metadata, intensity, root)

    state = jax.eval_shape(lambda k: ddpm.init(parts, k, (1, *config.data.patch, 1)), root)
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=devices.replicated(mesh)), state
    )
    params = checkpoint.load(args.checkpoint, like, args.step).ema_params

    settings = {
        "seed": args.seed,
        "checkpoint_sha256": checkpoint.fingerprint(params),
        "t_start": args.t_start,
        "num_steps": num_steps,
        "variance": args.variance,
        "sigma": args.sigma,
        "tile": list(tile),
        "overlap": list(overlap),
        "source": args.recipe or args.sketches,
        "shape": args.shape,
        "cells": args.cells,
        "spacing_um": args.spacing_um,
    }
    out = Path(args.out)
    manifest = manifests.open_manifest(out, "sample", settings)
    manifest |= {"config": metadata["config"], "intensity": metadata["intensity"]}

    run = functools.partial(_denoiser(parts, mesh, tile, overlap, args.tile_batch), params)
    todo = [job for job in jobs if not all((out / folder / job.name).is_file() for folder in FOLDERS)]
    if len(todo) < len(jobs):
        print(f"{len(jobs) - len(todo)} of {len(jobs)} files are there already")
    manifests.make_folders(out, FOLDERS)
    begun = time.perf_counter()
    for number, job in enumerate(todo):
        key = keys.stream(root, "sample", job.name)
        labels, sketch, spacing = job.draw()
        x0 = blur(sketch, args.sigma)[..., None] if args.sigma else sketch[..., None]
        x = samplers.start(key, x0, args.t_start, parts.schedule)
        cond = ddpm.condition(parts, key, x.shape)
        done, piece = 0, 1
        while done < num_steps:
            clock = time.perf_counter()
            x = jax.block_until_ready(run(key, x, cond, plan, done, min(done + piece, num_steps)))
            now = time.perf_counter()
            done = min(done + piece, num_steps)
            share = (number + done / num_steps) / len(todo)
            left = datetime.timedelta(seconds=round((now - begun) * (1 / share - 1)))
            print(f"{number + 1}/{len(todo)} {job.name}  step {done}/{num_steps}  ETA {left}", flush=True)
            piece = max(1, round(piece * CHUNK_S / max(now - clock, 1e-3)))
        image = intensities.denormalise(np.asarray(x[..., 0]), intensity)
        for folder, volume in zip(FOLDERS, (labels, sketch, image), strict=True):
            volumes.write(out / folder / job.name, np.asarray(volume), spacing_um=spacing)
        manifest["files"][job.name] = {
            "source": job.source,
            "key": ["sample", job.name],
            "shape": list(image.shape),
            "spacing_um": spacing,
            "num_cells": len(np.setdiff1d(np.unique(np.asarray(labels)), [0])),
        }
        manifests.write_json(out / manifests.NAME, manifest)
    print(f"done: {len(jobs)} annotated images in {out}")


def _denoiser(parts, mesh, tile, overlap, tile_batch) -> Callable:
    """run(params, key, x, cond, plan, first, last): a piece of the sampling of one volume, in tiles over the mesh."""
    import jax

    from jaxsynth import devices
    from jaxsynth.data import tiles
    from jaxsynth.diffusion import samplers
    from jaxsynth.tasks import ddpm

    def constrain(batch):
        # Without it every device would evaluate every tile.
        return jax.lax.with_sharding_constraint(batch, devices.split(mesh))

    @jax.jit
    def run(params, key, x, cond, plan, first, last):
        grid = tiles.plan_tiles(x.shape[:-1], tile, overlap)
        wanted = min(tile_batch or mesh.size, grid.num_tiles)
        batch_size = -(-wanted // mesh.size) * mesh.size
        denoise = tiles.tiled(ddpm.denoiser(parts, params), grid, batch_size, constrain)
        return samplers.ddpm(denoise, key, x, plan, cond, first=first, last=last)

    return run


def _given(args, ndim: int, metadata: dict) -> list[Job]:
    """Jobs from sketch files and the label images of the same names."""
    import numpy as np

    from jaxsynth.data import volumes

    files = volumes.find_files(args.sketches)
    folder = Path(args.labels) if args.labels else Path(files[0]).parent.parent / "labels"
    beside = Path(files[0]).parent.parent / "manifest.json"
    if beside.is_file():
        made_for = json.loads(beside.read_text()).get("settings", {}).get("intensity")
        if made_for is not None and made_for != metadata["intensity"]:
            raise InputError(
                f"{args.sketches} were drawn for another normalisation than the checkpoint's: "
                "make them again with jaxsynth.simulate --checkpoint"
            )

    def draw(sketch_file, label_file):
        import jax.numpy as jnp

        sketch = volumes.read(sketch_file)
        if sketch.ndim != ndim:
            raise InputError(f"{sketch_file}: the sketch is {sketch.ndim}D, the model {ndim}D")
        if sketch.dtype.kind != "f" or not np.isfinite(sketch).all() or np.abs(sketch).max() > 1.0:
            raise InputError(f"{sketch_file}: sketches must be float in [-1, 1], as jaxsynth.simulate writes them")
        labels = volumes.read_labels(label_file)
        if labels.shape != sketch.shape:
            raise InputError(f"{label_file}: labels {labels.shape} and sketch {sketch.shape} differ in shape")
        spacing = volumes.spacing_um(sketch_file) or metadata["spacing_um"]
        return labels, jnp.asarray(sketch, jnp.float32), spacing

    jobs = []
    for file in files[: args.num]:
        label_file = next((p for p in sorted(folder.glob("*")) if p.stem == file.stem), None)
        if label_file is None:
            raise InputError(f"{folder} has no label image for {file.name}")
        draw(file, label_file)  # said before anything is written
        jobs.append(Job(f"{file.stem}.tif", str(file.name), functools.partial(draw, file, label_file)))
    return jobs


def _simulated(args, ndim: int, metadata: dict, intensity, root) -> list[Job]:
    """Jobs that simulate their labels; brightness, and for the recipe `nuclei` size and number, as in the training
    images."""
    from jaxsynth import keys
    from jaxsynth.sim import tissues
    from jaxsynth.sim.sketch import sketch

    recipe = tissues.find(args.recipe)
    seen = metadata.get("cells") if recipe.name == "nuclei" else None
    shape = args.shape or (tuple(seen["shape"]) if seen else recipe.shape)
    if len(shape) != ndim:
        raise InputError(f"recipe {args.recipe} makes {len(shape)}D images, the model {ndim}D: set --shape")
    spacing = args.spacing_um or (metadata["spacing_um"] and tuple(metadata["spacing_um"]))
    tissues.check(recipe, shape, spacing)
    num_range, drawn_at = None, spacing
    if seen and not args.spacing_um:
        # A named organism has the size its paper says. Generic nuclei get that of the training images: the recipe
        # is drawn as if a voxel were as large as makes them so.
        relative = [step / spacing[-1] for step in spacing] if spacing else [1.0] * ndim
        drawn_at = tuple(step * recipe.radius_um / seen["radius_vox"] for step in relative)
        share = math.prod(shape) / math.prod(seen["shape"])
        num_range = tuple(max(1, round(factor * seen["num_cells"] * share)) for factor in (0.7, 1.3))

    def draw(name):
        key = keys.stream(root, "simulate", name)
        drawn = tissues.simulate_labels(key, recipe, shape, drawn_at, args.cells, num_range)
        used = spacing or (None if seen else tissues.default_spacing(recipe, shape))
        return drawn.labels, sketch(drawn.labels, drawn.brightness, levels=tuple(intensity.levels)), used

    names = [f"{args.recipe}_{i:04d}.tif" for i in range(args.num or 10)]
    return [Job(name, f"recipe {args.recipe}", functools.partial(draw, name)) for name in names]


def _per_axis(name: str, sizes: tuple[int, ...] | None, ndim: int, least: int) -> tuple[int, ...] | None:
    """The argument `name` where it was given.

    Raises:
      InputError: it has not one number per axis, or one below `least`.
    """
    if sizes is not None and (len(sizes) != ndim or min(sizes) < least):
        raise InputError(f"{name}: expected {ndim} whole numbers of {least} or more; got {sizes}")
    return sizes


if __name__ == "__main__":
    main()
