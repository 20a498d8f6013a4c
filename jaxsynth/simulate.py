"""Makes label images and sketches, from a recipe or from your own label images.

    python -m jaxsynth.simulate --recipe hela --num 10 --out sim/hela
    python -m jaxsynth.simulate --recipe celegans --num 2 --shape 32,128,128 --render --out sim/celegans
    python -m jaxsynth.simulate --labels masks/ --images images/ --checkpoint runs/mine --out sim/mine

OUT/labels and OUT/sketches (float32 in [-1, 1]) get equal names, OUT/images too with --render (uint16 camera counts of
a classical microscope model); OUT/manifest.json tells how to make every file again. Finished files are skipped on a
second run, and a file is the same whatever else is made.
"""

import argparse
import dataclasses
import math
import time
from pathlib import Path

from jaxsynth import cli
from jaxsynth import manifest as manifests
from jaxsynth.errors import InputError

STREAM = "simulate"


def main() -> None:
    """Entry point of the command."""
    cli.run(_main)


def _main() -> None:
    args = _parser().parse_args()
    _check(args)
    cli.enable_compilation_cache()
    if args.recipe is not None:
        from_recipe(args)
    else:
        from_labels(args)


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser("jaxsynth.simulate", __doc__)
    parser.add_argument("--out", required=True, help="folder of the results")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spacing_um", type=cli.numbers(float), metavar="Z,Y,X",
                        help="micrometres per voxel; default: the recipe's, or what the label files state")  # fmt: skip
    parser.add_argument("--checkpoint", help="folder of a training run, whose brightness the sketches shall have")
    simulated = parser.add_argument_group("from a recipe")
    simulated.add_argument("--recipe", help="nuclei, hela or celegans")
    simulated.add_argument("--num", type=int, help="how many images")
    simulated.add_argument("--shape", type=cli.numbers(int), metavar="Z,Y,X", help="voxels; default: the paper's size")
    simulated.add_argument("--cells", type=int, help="cells per image; default: drawn for each image")
    simulated.add_argument("--render", action="store_true", help="also write a microscope model's picture of each")
    own = parser.add_argument_group("from your own label images")
    own.add_argument("--labels", help="folder, glob or file")
    own.add_argument("--images", help="the real images, same names: each cell gets its mean brightness in them")
    own.add_argument("--normalization", choices=("minmax_shifted", "percentile", "asinh"),
                     help="of --images where no --checkpoint is given; default asinh")  # fmt: skip
    own.add_argument("--background_label", type=int, default=0, help="label of the background (some sets use 1)")
    return parser


def _check(args) -> None:
    if (args.recipe is None) == (args.labels is None):
        raise InputError("expected either --recipe NAME or --labels DIR")
    if args.recipe is not None:
        wrong = [f"--{name}" for name in ("images", "normalization") if getattr(args, name) is not None]
        wrong += ["--background_label"] * (args.background_label != 0)
        if wrong:
            raise InputError(f"{wrong[0]}: goes with --labels, not with --recipe")
        if args.num is None:
            raise InputError("--num: expected the number of images to make")
        if args.num < 1:
            raise InputError(f"--num: expected 1 or more; got {args.num}")
        if args.cells is not None and args.cells < 0:
            raise InputError(f"--cells: expected 0 or more; got {args.cells}")
    else:
        wrong = [f"--{name}" for name in ("num", "shape", "cells") if getattr(args, name) is not None]
        wrong += ["--render"] * args.render
        if wrong:
            raise InputError(f"{wrong[0]}: goes with --recipe, not with --labels")
        if args.checkpoint and args.normalization:
            raise InputError("--normalization: the checkpoint has its own; give one of the two")
        if args.normalization and not args.images:
            raise InputError("--normalization: goes with --images")
        if args.background_label < 0:
            raise InputError(f"--background_label: expected 0 or more; got {args.background_label}")
    if args.spacing_um is not None and not all(0 < step < math.inf for step in args.spacing_um):
        raise InputError(f"--spacing_um: expected positive numbers; got {args.spacing_um}")


def from_recipe(args) -> None:
    """Simulates `args.num` specimens."""
    from jaxsynth import specimens

    metadata = _metadata(args)
    plan = specimens.plan(args.recipe, args.shape, args.spacing_um, args.cells, metadata)
    intensity = _intensity(metadata)

    import jax
    import numpy as np

    from jaxsynth import keys
    from jaxsynth.data import volumes
    from jaxsynth.sim import microscope, sketch, tissues

    levels = intensity.levels if intensity else sketch.LEVELS
    psf_sigma_um = tissues.find(plan.recipe).psf_sigma_um[-len(plan.shape) :]
    draw_sketch = jax.jit(lambda labels, brightness: sketch.sketch(labels, brightness, levels=levels))
    render = jax.jit(
        lambda key, labels, brightness: microscope.render(
            key, labels, brightness, plan.drawn_at_um, psf_sigma_um=psf_sigma_um
        )
    )
    names = [f"{plan.recipe}_{index:04d}" for index in range(args.num)]
    folders = ("labels", "sketches", "images") if args.render else ("labels", "sketches")
    root = keys.root(args.seed)

    def make(name: str) -> dict:
        made = specimens.draw(root, name, plan)
        results = {"labels": np.asarray(made.labels), "sketches": np.asarray(draw_sketch(made.labels, made.brightness))}
        if args.render:
            counts = np.asarray(render(keys.stream(root, STREAM, name, "render"), made.labels, made.brightness))
            results["images"] = np.clip(np.rint(counts), 0, 65535).astype(np.uint16)
        for folder in folders:
            volumes.write(out / folder / f"{name}.tif", results[folder], spacing_um=plan.spacing_um)
        return {"num_asked": made.num_asked, "num_placed": made.num_placed}

    settings = {**dataclasses.asdict(plan), "levels": list(levels)}
    out, manifest = _open(args, settings, names, intensity)
    _make_all(out, manifest, names, folders, make)


def from_labels(args) -> None:
    """Sketches for label images that exist."""
    import numpy as np

    from jaxsynth.data import volumes

    files = _by_name(volumes.find_files(args.labels), "--labels")
    images = _by_name(volumes.find_files(args.images), "--images") if args.images else {}
    missing = [name for name in files if name not in images] if args.images else []
    if missing:
        raise InputError(f"{args.images}: no image named {missing[0]}, as {files[missing[0]]} is "
                         f"({len(missing)} of {len(files)} missing)")  # fmt: skip
    intensity = _intensity(_metadata(args))
    for name, file in files.items():
        _check_pair(args, file, images.get(name), intensity)
    if args.images and intensity is None:
        from jaxsynth.data import intensity as intensities

        used = [images[name] for name in files]
        intensity = intensities.fit(lambda: map(volumes.read, used), args.normalization or "asinh")

    import jax
    from skimage.segmentation import relabel_sequential

    from jaxsynth import keys
    from jaxsynth.data import intensity as intensities
    from jaxsynth.sim import sketch

    levels = intensity.levels if intensity else sketch.LEVELS
    from_brightness = jax.jit(lambda labels, brightness: sketch.sketch(labels, brightness, levels=levels))
    from_image = jax.jit(sketch.sketch_from_image, static_argnums=2)

    def make(name: str) -> dict:
        labels = volumes.read_labels(files[name])
        labels = np.where(labels == args.background_label, 0, labels)
        # Ids in files may be large and sparse; the table of grey values goes by rank.
        ranks = relabel_sequential(labels)[0].astype(np.int32)
        num_cells = int(ranks.max())
        # Few different table sizes, so that few programs are compiled.
        capacity = 2 ** math.ceil(math.log2(max(num_cells, 63) + 1))
        if args.images:
            image = intensities.normalise(volumes.read(images[name]), intensity)
            drawn = from_image(ranks, image, capacity)
        else:
            key = keys.stream(keys.root(args.seed), STREAM, name)
            drawn = from_brightness(ranks, jax.random.uniform(keys.stream(key, "brightness"), (capacity + 1,)))
        spacing_um = args.spacing_um or volumes.spacing_um(files[name])
        volumes.write(out / "labels" / f"{name}.tif", labels, spacing_um=spacing_um)
        volumes.write(out / "sketches" / f"{name}.tif", np.asarray(drawn), spacing_um=spacing_um)
        return {"num_cells": num_cells, "spacing_um": list(spacing_um) if spacing_um else None}

    settings = {"labels": str(args.labels), "images": args.images, "background_label": args.background_label,
                "spacing_um": args.spacing_um, "levels": list(levels)}  # fmt: skip
    out, manifest = _open(args, settings, list(files), intensity)
    _make_all(out, manifest, list(files), ("labels", "sketches"), make)


def _by_name(files: list[Path], flag: str) -> dict[str, Path]:
    named = {}
    for file in files:
        if file.stem in named:
            raise InputError(f"{flag}: two files named {file.stem}: {named[file.stem]} and {file}")
        named[file.stem] = file
    return named


def _check_pair(args, file: Path, image_file: Path | None, intensity) -> None:
    """What would stop the run half-way is said before anything is written."""
    import numpy as np

    from jaxsynth.data import volumes

    shape = volumes.read_labels(file).shape
    if args.spacing_um is not None and len(args.spacing_um) != len(shape):
        raise InputError(f"--spacing_um: expected {len(shape)} numbers, as {file} is {len(shape)}D; "
                         f"got {args.spacing_um}")  # fmt: skip
    if image_file is not None:
        image = volumes.read(image_file)
        if image.shape != shape:
            raise InputError(f"{image_file}: expected the shape of its labels {file}, {shape}; got {image.shape}")
        if not np.isfinite(image).all():
            raise InputError(f"{image_file}: holds NaN or infinite values")
        if intensity is not None and image.dtype.name != intensity.dtype:
            raise InputError(f"{image_file}: expected {intensity.dtype}, as the checkpoint was trained on; "
                             f"got {image.dtype}")  # fmt: skip


def _metadata(args) -> dict | None:
    """The metadata of --checkpoint."""
    if not args.checkpoint:
        return None
    from jaxsynth import checkpoint

    return checkpoint.read_metadata(Path(args.checkpoint))


def _intensity(metadata: dict | None):
    """The normalisation that a checkpoint was trained with."""
    from jaxsynth.data import intensity

    return intensity.Intensity.from_dict(metadata["intensity"]) if metadata else None


def _open(args, settings: dict, names: list[str], intensity) -> tuple[Path, dict]:
    """Makes the folder and its manifest; refuses a folder that was made with other settings."""
    out = Path(args.out)
    settings = {"seed": args.seed, **settings, "intensity": intensity.to_dict() if intensity else None}
    content = manifests.open_manifest(out, "simulate", settings)
    manifests.make_folders(out, ("labels", "sketches", "images") if args.render else ("labels", "sketches"))
    content["files"] = {name: {"key": [STREAM, name]} for name in names} | content["files"]
    return out, content


def _make_all(out: Path, manifest: dict, names: list[str], folders: tuple[str, ...], make) -> None:
    """Makes what is missing, with a line of progress, and writes the manifest before and after."""

    def finished(name: str) -> bool:
        # The manifest tells of a file last: what it has only a key for was interrupted.
        there = all((out / folder / f"{name}.tif").is_file() for folder in folders)
        return there and set(manifest["files"][name]) > {"key"}

    todo = [name for name in names if not finished(name)]
    if len(todo) < len(names):
        print(f"{len(names) - len(todo)} of {len(names)} are finished already")
    manifests.write_json(out / manifests.NAME, manifest)
    started, shown = time.monotonic(), 0.0
    for index, name in enumerate(todo):
        manifest["files"][name].update(make(name))
        manifests.write_json(out / manifests.NAME, manifest)
        now = time.monotonic()
        left = (now - started) / (index + 1) * (len(todo) - index - 1)
        if now - shown > 2 or index + 1 == len(todo):
            shown = now
            print(f"simulate {index + 1}/{len(todo)}  {name}  {now - started:.0f} s, {left:.0f} s left", flush=True)
    print(f"{len(names)} label images and sketches in {out}")


if __name__ == "__main__":
    main()
