"""Turns sketches, given or simulated, into realistic annotated images with a trained diffusion model.

    python -m jaxsynth.sample --checkpoint runs/mine --recipe nuclei --num 20 --out runs/mine/dataset
    python -m jaxsynth.sample --checkpoint runs/mine --sketches DIR/sketches --out runs/mine/dataset

OUT gets `images/`, `labels/` and `sketches/` with equal names, and `manifest.json` with all that is needed to make
any file again. Beside the settings a file depends on the seed and its own name alone; finished files are skipped on a
second run.
"""

import argparse
import dataclasses
import datetime
import functools
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

from jaxsynth import cli
from jaxsynth import manifest as manifests
from jaxsynth.errors import InputError

FOLDERS = ("labels", "sketches", "images")
TILES = {2: ((512, 512), (64, 64)), 3: ((64, 128, 128), (16, 32, 32))}  # largest tile and least overlap, voxels
CHUNK_S = 5.0  # a progress line about this often


@dataclasses.dataclass(frozen=True)
class Job:
    """One file to make: its name, and a function that returns (labels int32 [*S], sketch float32 [*S], spacing_um or
    None)."""

    name: str
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
        help="least overlap of tiles, voxels (default: 64,64 or 16,32,32)",
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
    from jaxsynth.data import volumes
    from jaxsynth.diffusion import samplers
    from jaxsynth.sim.sketch import blur
    from jaxsynth.tasks import ddpm

    # The trained network.
    mesh = devices.make_mesh()
    saved = checkpoint.find(args.checkpoint, args.step)  # once: a training may be adding others meanwhile
    metadata = checkpoint.read_metadata(saved)
    config = ConfigDict(metadata["config"])
    if config.task != "ddpm":
        raise InputError(f"--checkpoint {args.checkpoint} is of task {config.task!r}, which samples no images")
    intensity = intensities.Intensity.from_dict(metadata["intensity"])
    parts = ddpm.build(config)
    ndim = len(config.data.patch)
    tile, overlap = _check(args, ndim, parts.t_max)
    plan = samplers.ddpm_plan(parts.schedule, args.t_start, num_steps=args.num_steps, variance=args.variance)
    num_steps = plan.t.shape[0]

    # What is to be made.
    root = keys.root(args.seed)
    jobs, source = (_given if args.sketches else _simulated)(args, ndim, metadata, intensity, root)

    replicated = devices.replicated(mesh)
    state = jax.eval_shape(lambda k: ddpm.init(parts, k, (1, *config.data.patch, 1)), root)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated), state)
    params = checkpoint.load(saved, like).ema_params

    settings = {
        "seed": args.seed,
        "checkpoint_step": saved.name,
        "checkpoint_sha256": checkpoint.fingerprint(params),
        "t_start": args.t_start,
        "num_steps": num_steps,
        "variance": args.variance,
        "sigma": args.sigma,
        "tile": tile,
        "overlap": overlap,
        "source": source,
    }
    out = Path(args.out)
    manifest = manifests.open_manifest(out, "sample", settings)
    manifest |= {"config": metadata["config"], "intensity": metadata["intensity"]}
    manifests.make_folders(out, FOLDERS)
    manifests.write_json(out / manifests.NAME, manifest)

    run = _sampler(parts, mesh, tile, overlap, args.tile_batch)
    # The manifest tells of a file last: what it does not know was interrupted.
    todo = [
        job
        for job in jobs
        if job.name not in manifest["files"] or not all((out / f / f"{job.name}.tif").is_file() for f in FOLDERS)
    ]
    if len(todo) < len(jobs):
        print(f"{len(jobs) - len(todo)} of {len(jobs)} files are there already")
    begun = time.perf_counter()
    for number, job in enumerate(todo):
        key = keys.stream(root, "sample", job.name)
        labels, sketch, spacing = job.draw()
        x0 = blur(sketch, args.sigma)[..., None] if args.sigma else sketch[..., None]
        x = jax.device_put(samplers.start(key, x0, args.t_start, parts.schedule), replicated)
        cond = jax.device_put(ddpm.condition(parts, key, x.shape), replicated)
        done, piece = 0, 1
        while done < num_steps:
            clock = time.perf_counter()
            x = jax.block_until_ready(run(params, key, x, cond, plan, done, min(done + piece, num_steps)))
            now = time.perf_counter()
            done = min(done + piece, num_steps)
            share = (number + done / num_steps) / len(todo)
            left = datetime.timedelta(seconds=round((now - begun) * (1 / share - 1)))
            print(f"{number + 1}/{len(todo)} {job.name}  step {done}/{num_steps}  ETA {left}", flush=True)
            piece = max(1, round(piece * CHUNK_S / max(now - clock, 1e-3)))
        image = intensities.denormalise(np.asarray(x[..., 0]), intensity)
        labels, sketch = np.asarray(labels), np.asarray(sketch)
        for folder, volume in zip(FOLDERS, (labels, sketch, image), strict=True):
            volumes.write(out / folder / f"{job.name}.tif", volume, spacing_um=spacing)
        manifest["files"][job.name] = {
            "keys": [["simulate", job.name], ["sample", job.name]] if args.recipe else [["sample", job.name]],
            "sketch_sha256": hashlib.sha256(sketch.tobytes()).hexdigest(),
            "labels_sha256": hashlib.sha256(labels.astype(np.int32).tobytes()).hexdigest(),
            "shape": image.shape,
            "spacing_um": spacing,
            "num_cells": len(np.setdiff1d(np.unique(labels), [0])),
            "versions": manifest["versions"],
        }
        manifests.write_json(out / manifests.NAME, manifest)
    print(f"done: {len(jobs)} annotated images in {out}")


def _check(args, ndim: int, t_max: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(tile, overlap); raises InputError where an argument makes no sense."""
    from jaxsynth.data import tiles

    if not 1 <= args.t_start <= t_max:
        raise InputError(f"--t_start must lie in 1..{t_max}, what this model was trained on; got {args.t_start}")
    if not 0 <= args.sigma < 100:
        raise InputError(f"--sigma must lie in 0..100 voxels, got {args.sigma}")
    for name, value in (("num", args.num), ("tile_batch", args.tile_batch)):
        if value is not None and value < 1:
            raise InputError(f"--{name} must be at least 1, got {value}")
    if not 0 <= args.seed < 2**32:
        raise InputError(f"--seed must lie in 0..{2**32 - 1}, got {args.seed}")
    wrong = ("shape", "cells", "spacing_um") if args.sketches else ("labels",)
    for name in wrong:
        if getattr(args, name) is not None:
            raise InputError(f"--{name} does not go with --{'sketches' if args.sketches else 'recipe'}")
    tile = _per_axis("--tile", args.tile, ndim, 8) or TILES[ndim][0]
    overlap = _per_axis("--overlap", args.overlap, ndim, 0) or TILES[ndim][1]
    tiles.plan_tiles((2 * max(tile),) * ndim, tile, overlap)  # says so where they do not go together
    return tile, overlap


def _sampler(parts, mesh, tile, overlap, tile_batch) -> Callable:
    """run(params, key, x, cond, plan, first, last): a piece of the sampling of one volume, in tiles over the mesh.

    Compiled once per shape of x.
    """
    import jax

    from jaxsynth import devices
    from jaxsynth.data import tiles
    from jaxsynth.diffusion import samplers
    from jaxsynth.tasks import ddpm

    def constrain(batch):
        # Without it every device would evaluate every tile.
        return jax.lax.with_sharding_constraint(batch, devices.split(mesh))

    def run(params, key, x, cond, plan, first, last):
        grid = tiles.plan_tiles(x.shape[:-1], tile, overlap)
        wanted = min(tile_batch or mesh.size, grid.num_tiles)
        batch_size = -(-wanted // mesh.size) * mesh.size
        denoise = tiles.tiled(ddpm.denoiser(parts, params), grid, batch_size, constrain)
        return samplers.ddpm(denoise, key, x, plan, cond, first=first, last=last)

    return jax.jit(run, out_shardings=devices.replicated(mesh))


def _given(args, ndim: int, metadata: dict, intensity, root) -> tuple[list[Job], dict]:
    """Jobs from sketch files and the label images of the same names, and what tells of them in the manifest."""
    import numpy as np

    from jaxsynth.data import volumes

    files = volumes.find_files(args.sketches)[: args.num]
    folder = Path(args.labels) if args.labels else files[0].parent.parent / "labels"
    _check_scale(files[0].parent.parent / manifests.NAME, metadata)
    labelled = {file.stem: file for file in volumes.find_files(folder)} if folder.is_dir() else {}

    def draw(sketch_file, label_file):
        sketch = volumes.read(sketch_file)
        if sketch.ndim != ndim:
            raise InputError(f"{sketch_file}: the sketch is {sketch.ndim}D, the model {ndim}D")
        if sketch.dtype.kind != "f" or not np.isfinite(sketch).all() or np.abs(sketch).max() > 1.0:
            raise InputError(f"{sketch_file}: sketches must be float in [-1, 1], as jaxsynth.simulate writes them")
        labels = volumes.read_labels(label_file)
        if labels.shape != sketch.shape:
            raise InputError(f"{label_file}: labels {labels.shape} and sketch {sketch.shape} differ in shape")
        return labels, sketch.astype(np.float32), volumes.spacing_um(sketch_file) or metadata["spacing_um"]

    jobs = []
    for file in files:
        if file.stem not in labelled:
            raise InputError(f"{folder} has no label image for {file.name}")
        if jobs and jobs[-1].name == file.stem:
            raise InputError(f"{args.sketches}: two sketches are named {file.stem}")
        draw(file, labelled[file.stem])  # what is wrong is said before anything is written
        jobs.append(Job(file.stem, functools.partial(draw, file, labelled[file.stem])))
    return jobs, {"sketches": args.sketches, "labels": str(folder)}


def _check_scale(file: Path, metadata: dict) -> None:
    """Raises InputError where the sketches' own manifest says that they were drawn for another normalisation."""
    try:
        content = json.loads(file.read_text())
        made_for = content.get("intensity") or content["settings"]["intensity"]
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        return
    if made_for is not None and made_for != metadata["intensity"]:
        raise InputError(
            f"{file.parent}: the sketches were drawn for another normalisation than the checkpoint's: "
            "make them again with jaxsynth.simulate --checkpoint"
        )


def _simulated(args, ndim: int, metadata: dict, intensity, root) -> tuple[list[Job], dict]:
    """Jobs that simulate their cells, and what tells of them in the manifest."""
    from jaxsynth import specimens

    plan = specimens.plan(args.recipe, args.shape, args.spacing_um, args.cells, metadata)
    drawer = specimens.drawer(plan, specimens.Wanted(levels=tuple(intensity.levels)))

    def draw(name):
        drawn = drawer(root, name)
        return drawn.specimen.labels, drawn.sketch, plan.spacing_um

    names = [f"{args.recipe}_{i:04d}" for i in range(args.num or 10)]
    return [Job(name, functools.partial(draw, name)) for name in names], dataclasses.asdict(plan)


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
