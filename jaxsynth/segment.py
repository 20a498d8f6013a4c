"""Segments cells: trains a network on annotated images, real or synthetic, applies it, scores it.

    python -m jaxsynth.segment train --images DIR/images --labels DIR/labels --workdir runs/segmenter
    python -m jaxsynth.segment train --recipe nuclei --renderer runs/mine --workdir runs/segmenter
    python -m jaxsynth.segment predict --checkpoint runs/segmenter --images FOLDER --out runs/segmented
    python -m jaxsynth.segment score --reference LABELS --segmentation runs/segmented --out runs/scores

`train` goes on where it stopped; without files it simulates cells and renders them where it trains. `predict` writes
`labels/`, in the images' shapes and names, and `manifest.json`; finished files are skipped on a second run.
"""

import argparse
import dataclasses
from pathlib import Path

from jaxsynth import cli
from jaxsynth import manifest as manifests
from jaxsynth.errors import InputError

CONFIG = Path(__file__).parent.parent / "configs" / "flowseg.py"


def main() -> None:
    """Entry point of the command."""
    cli.run(_main)


def _main() -> None:
    parser = cli.Parser("jaxsynth.segment", __doc__)
    parts = parser.add_subparsers(dest="what", required=True, metavar="{train,predict,score}")
    for name, add, does in (
        ("train", _add_train, "train a network on images and labels, or on simulated specimens"),
        ("predict", _add_predict, "label the cells of images"),
        ("score", _add_score, "compare label images with reference ones"),
    ):
        epilog = "Any key of configs/common.py can be set as --config.KEY=VALUE." if name == "train" else None
        part = parts.add_parser(name, help=does, description=does[0].upper() + does[1:] + ".", epilog=epilog)
        add(part)
    args, overrides = parser.parse_known_args()
    if overrides and args.what != "train":
        raise InputError(f"unknown argument {overrides[0]!r}")
    {"train": train, "predict": predict, "score": score}[args.what](args, overrides)


def _add_train(parser) -> None:
    parser.add_argument("--workdir", required=True, help="folder of the run; an existing run is continued")
    files = parser.add_argument_group("from files")
    files.add_argument("--images", help="folder, glob or file; several separated by commas")
    files.add_argument("--labels", help="label images of the same names, 0 = background; as many places")
    files.add_argument("--val_images", help="held-out images (default: the last tenth of every folder)")
    files.add_argument("--val_labels", help="and their labels")
    stream = parser.add_argument_group("without files")
    stream.add_argument("--recipe", help="simulate cells of this kind: see jaxsynth.simulate")
    stream.add_argument("--renderer", metavar="RUN", help="whose diffusion model makes them images "
                        "(default: the embedded microscope)")  # fmt: skip
    parser.add_argument("--config", default=str(CONFIG), help="configuration file (default: configs/flowseg.py)")
    parser.add_argument("--distributed", action="store_true", help="join the processes of this run, see jaxsynth.train")
    parser.add_argument("--profile", metavar="DIR", help="trace steps 3 to 7 into this folder")


def _add_predict(parser) -> None:
    parser.add_argument("--checkpoint", required=True, help="a training run's folder, or one checkpoint in it")
    parser.add_argument("--step", default="best", help="which checkpoint: best, latest or a step (default: best)")
    parser.add_argument("--images", required=True, help="folder, glob or file")
    parser.add_argument("--out", required=True, help="folder of the label images")
    parser.add_argument("--channel", type=int, help="channel of images with several (default: the training's)")
    parser.add_argument("--dataset", help="data set inside HDF5 files (default: the training's)")
    parser.add_argument("--num", type=int, help="the first so many images only")
    parser.add_argument("--diameter", type=float, metavar="VOXELS",
                        help="of the cells in the plane (default: as in the training)")  # fmt: skip
    parser.add_argument("--foreground", type=float, default=0.5, help="least foreground of a cell's voxels, 0..1 "
                        "(default: 0.5)")  # fmt: skip
    parser.add_argument("--flow_error", type=float, help="drop cells whose shape and flows differ by more "
                        "(default: 0.6; 0: none are dropped)")  # fmt: skip
    parser.add_argument("--overlap", type=float, default=0.0, help="drop cells whose mean foreground is lower, 0..1 "
                        "(default: 0)")  # fmt: skip
    parser.add_argument("--convexity", type=float, default=0.0, help="drop cells that fill a smaller share of their "
                        "convex hull, 0..1 (default: 0)")  # fmt: skip
    parser.add_argument("--min_size", type=int, help="drop cells of fewer voxels (default: a twentieth of the "
                        "training's cells)")  # fmt: skip
    parser.add_argument("--tile", type=cli.numbers(int), metavar="Z,Y,X",
                        help="largest tile, voxels (default: as large as the memory allows)")  # fmt: skip
    parser.add_argument("--worker", type=manifests.worker, default=(1, 1), metavar="I/N",
                        help="segment every N-th image from the I-th on: start 1/N to N/N at once")  # fmt: skip


def _add_score(parser) -> None:
    from jaxsynth import segment_scores

    segment_scores.add_arguments(parser)


def train(args: argparse.Namespace, overrides: list[str]) -> None:
    """Trains as `jaxsynth.train` does with a task flowseg."""
    import os

    for name in ("images", "labels", "val_images", "val_labels"):
        if args.recipe and getattr(args, name):
            raise InputError(f"--{name} does not go with --recipe, whose specimens need no files")
    if args.renderer and not args.recipe:
        raise InputError("--renderer makes images of simulated cells: it goes with --recipe")
    given = {
        "data.path": args.images,
        "seg.labels": args.labels,
        "data.val_path": args.val_images,
        "seg.val_labels": args.val_labels,
        "seg.recipe": args.recipe,
        "seg.checkpoint": args.renderer,
    }
    own = [f"--config.{key}={value}" for key, value in given.items() if value is not None]
    config = cli.read_config(args.config, own + overrides)
    if config.task != "flowseg":
        raise InputError(f"--config {args.config} is of task {config.task!r}, expected flowseg")
    cli.keep_memory()
    cli.enable_compilation_cache()
    if args.distributed:
        from jaxsynth import devices

        devices.join(os.environ)
    from jaxsynth import train as training

    training.train(config, Path(args.workdir), args.profile)


def predict(args: argparse.Namespace, _) -> None:
    """Labels the cells of images.

    Raises:
      InputError: unusable arguments or files; nothing has been written then.
    """
    _check(args)
    cli.keep_memory()
    cli.enable_compilation_cache()
    import numpy as np

    from jaxsynth import checkpoint, segmenter
    from jaxsynth.data import volumes
    from jaxsynth.seg import segmentation

    model = segmenter.open_segmenter(args.checkpoint, args.step)
    if args.tile is not None and (len(args.tile) != model.ndim or min(args.tile) < segmenter.LEAST_TILE):
        raise InputError(f"--tile: expected {model.ndim} sizes of {segmenter.LEAST_TILE} or more, got {args.tile}")
    data = model.config.data
    channel = args.channel if args.channel is not None else None if data.channel < 0 else data.channel
    dataset = args.dataset or data.dataset
    opened = volumes.find_files(args.images)[: args.num]
    names = [file.stem for file in opened]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"--images {args.images}: two files are named {twice}")
    files = dict(zip(names, opened, strict=True))
    options = segmentation.Options(
        foreground=args.foreground, flow_error=args.flow_error, overlap=args.overlap, convexity=args.convexity
    )

    def read(name):
        image = volumes.read(files[name], channel=channel, dataset=dataset)
        if image.ndim != model.ndim:
            raise InputError(f"{files[name]}: is {image.ndim}D {image.shape}, the network is {model.ndim}D")
        if not np.isfinite(image).all():
            raise InputError(f"{files[name]}: holds NaN or infinite values")
        return image

    read(names[0])
    out = Path(args.out)
    settings = {
        "images": args.images,
        "channel": args.channel,
        "dataset": args.dataset,
        "checkpoint_step": model.folder.name,
        "checkpoint_sha256": checkpoint.fingerprint(model.params),
        "diameter": args.diameter,
        "tile": args.tile,
        "options": dataclasses.asdict(options) | {"min_size": args.min_size},
    }
    if not options.convexity:  # as in manifests of before there was such a filter, so that these are continued
        del settings["options"]["convexity"]
    manifest = manifests.open_manifest(out, "segment predict", settings)
    manifests.make_folders(out, ("labels",))
    segment = segmenter.segment(model, options, min_size=args.min_size, tile=args.tile)

    def make(name):
        image, spacing = read(name), volumes.spacing_um(files[name], dataset=dataset)
        spacing = spacing if spacing and len(spacing) == model.ndim else None
        scale = segmenter.scale_for(model, spacing, args.diameter)
        labels = segment(image, scale)
        entry = {"shape": image.shape, "num_cells": int(labels.max(initial=0)), "spacing_um": spacing, "scale": scale}

        def write():
            volumes.write(out / "labels" / f"{name}.tif", labels, spacing_um=spacing)
            return entry | {"versions": manifest["versions"]}

        return write

    def there(name):
        return (out / "labels" / f"{name}.tif").is_file()

    whole = manifests.make_files(out, manifest, names, there, make, planned=lambda name: {"image": files[name].name},
                                worker=args.worker)  # fmt: skip
    if whole:
        print(f"done: {len(names)} label images in {out / 'labels'}")
    else:
        print(f"worker {args.worker[0]} of {args.worker[1]} is done, others are not yet")


def _check(args) -> None:
    """Raises InputError where an argument makes no sense."""
    for name, low, high in (("foreground", 0, 1), ("overlap", 0, 1), ("convexity", 0, 1), ("flow_error", 0, 4)):
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            raise InputError(f"--{name}: expected a number in {low}..{high}, got {value}")
    for name, least in (("num", 1), ("min_size", 0), ("channel", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"--{name}: expected {least} or more, got {value}")
    if args.diameter is not None and not args.diameter > 0:
        raise InputError(f"--diameter: expected a positive number of voxels, got {args.diameter}")


def score(args: argparse.Namespace, _) -> None:
    """Scores label images against reference ones."""
    from jaxsynth import segment_scores

    segment_scores.score(args)


if __name__ == "__main__":
    main()
