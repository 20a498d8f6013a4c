"""Makes realistic annotated images with a trained model: a diffusion model from sketches or simulated cells, a GAN from
label images or simulated cells.

    python -m jaxsynth.sample --checkpoint runs/mine --recipe nuclei --num 20 --out runs/mine/dataset
    python -m jaxsynth.sample --checkpoint runs/mine --sketches DIR/sketches --out runs/mine/dataset
    python -m jaxsynth.sample --checkpoint runs/gan --labels DIR --alpha 50 --out runs/gan/dataset

OUT gets `images/`, `labels/` and, but for a GAN, `sketches/` with equal names, and `manifest.json` with all that is
needed to make any file again. Beside the settings a file depends on the seed and its own name alone; finished files are
skipped on a second run. With --faithful, images of nuclei are judged by their labels: cells that are not seen are
dropped from the labels, after up to --attempts draws of the noise.
"""

import argparse
import json
import math
from pathlib import Path

from jaxsynth import cli
from jaxsynth import manifest as manifests
from jaxsynth.errors import InputError

T_START = 400
ATTEMPTS = 3
DEFAULTS = {"shapes": "exact", "faithful": None, "attempts": 0}  # of settings that a manifest leaves out
# What is for one kind of model alone, and what it is where it was not given.
ONLY_DIFFUSION = {"t_start": None, "sampler": None, "num_evaluations": None, "spacing": None, "eta": 0.0}
ONLY_DIFFUSION |= {"variance": "fixed_large", "sigma": 1.0, "scratch": None}
ONLY_GAN = {"alpha": None, "beta": None, "background_label": None}
MANY_SHAPES = 8  # beyond it their number is worth a hint
EVALUATIONS = 5  # samplers.DEFAULT_EVALUATIONS, for the help alone, which imports nothing heavy


def main() -> None:
    """Entry point of the command."""
    cli.run(_main)


def _main() -> None:
    args = _parse()
    if args.scratch is None:
        cli.keep_memory()
    cli.enable_compilation_cache()
    sample(args)


def _parse() -> argparse.Namespace:
    parser = cli.Parser("jaxsynth.sample", __doc__)
    parser.add_argument("--checkpoint", required=True, help="a training run's folder, or one checkpoint in it")
    parser.add_argument("--step", default="best", help="which checkpoint: best, latest or a step (default: best)")
    parser.add_argument("--out", required=True, help="folder of the data set")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--sketches", help="folder of sketches, float in [-1, 1], as jaxsynth.simulate writes them")
    source.add_argument("--recipe", help="simulate cells of this kind: see jaxsynth.simulate")
    parser.add_argument(
        "--labels",
        help="label images: of the sketches (default: the folder labels beside them), or what a GAN starts from",
    )
    parser.add_argument("--num", type=int, help="how many images (default: all there are, or 10)")
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
    parser.add_argument("--t_start", type=int, help="noise level of the start (default: 400, or the model's latest)")
    parser.add_argument(
        "--sampler", help="ddpm, ddim, dpmpp, dpmpp_sde (default) or heun; consistency (default of distilled models)"
    )
    parser.add_argument(
        "--num_evaluations", type=int, help="of the network, per image (default: 5; ddpm: t_start; consistency: 2)"
    )
    spacings = "uniform, trailing, log_snr or karras"
    parser.add_argument("--spacing", help=f"of the noise levels: {spacings} (default: the sampler's)")
    parser.add_argument("--eta", type=float, default=0.0, help="ddim's share of fresh noise, 0..1 (default: 0)")
    parser.add_argument("--variance", default="fixed_large", help="ddpm's: fixed_large (published) or fixed_small")
    parser.add_argument(
        "--alpha", type=float, help="GAN: scale of the position map within the organism, voxels along x: the less, the "
        "poorer the image at depth (default: the training's)",
    )  # fmt: skip
    parser.add_argument(
        "--beta", type=float, help="GAN: the same outside, whatever --alpha is (default: the training's)"
    )
    parser.add_argument("--background_label", type=int, help="GAN: label of the background (default: the training's)")
    parser.add_argument("--sigma", type=float, default=1.0, help="blur of the sketch, voxels (default: 1)")
    parser.add_argument(
        "--tile",
        type=cli.numbers(int),
        metavar="Z,Y,X",
        help="largest tile, Y,X or Z,Y,X voxels (default: as large as the memory allows)",
    )
    parser.add_argument(
        "--overlap",
        type=cli.numbers(int),
        metavar="Z,Y,X",
        help="overlap of tiles, voxels (default and least: 32, or 48 for gan.smooth_doublings, which makes tiled and "
        "untiled results equal; 64 for norm=instance, which blends them)",
    )
    parser.add_argument("--tile_batch", type=int, help="tiles evaluated at once (default: one per device)")
    parser.add_argument(
        "--batch", type=int, help="images denoised at once, where they fit into the memory (default: one per device)"
    )
    parser.add_argument(
        "--shapes",
        choices=("exact", "rounded"),
        default="exact",
        help="rounded: images of many sizes are extended by reflection to one of few shapes, of which each is compiled "
        "once, and cropped (default: exact)",
    )
    parser.add_argument(
        "--worker",
        type=manifests.worker,
        default=(1, 1),
        metavar="I/N",
        help="make every N-th image from the I-th on: start 1/N to N/N at once, on one machine or many",
    )
    parser.add_argument(
        "--faithful",
        choices=("redraw", "drop"),
        help="judge every image: redraw those where a labelled cell is not seen, or one is seen without a label, and "
        "keep the best; drop from the labels what is still not seen. drop: only this (default: neither)",
    )
    parser.add_argument("--attempts", type=int, help="most images drawn of one sketch with redraw (default: 3)")
    parser.add_argument("--profile", metavar="DIR", help="write a trace of the second batch of images there")
    parser.add_argument(
        "--scratch",
        metavar="DIR",
        help="for volumes larger than the memory: worked on in files here and written as mapped TIFF; sketches and "
        "labels are mapped, too, where they are uncompressed TIFF",
    )
    return parser.parse_args()


def sample(args: argparse.Namespace) -> None:
    """Makes the data set that `args` (see `_parse`) describes.

    Raises:
      InputError: unusable arguments or files; nothing has been written then.
    """
    from jaxsynth import checkpoint, faithful, image_files, keys, sample_jobs, trained, trained_gan

    # The trained network, and how it is run.
    model = trained.open_trained(args.checkpoint, args.step, tasks=(*trained.DENOISERS, "gan"))
    _check(args, model)
    plan, how = _how(args, model)
    attempts = {None: 0, "drop": 1, "redraw": args.attempts or ATTEMPTS}[args.faithful]
    rounded = args.shapes == "rounded"
    making = image_files.Settings(
        plan, args.sigma, args.tile, args.overlap, args.tile_batch, args.scratch, args.batch, rounded, attempts
    )

    # What is to be made.
    root = keys.root(args.seed)
    jobs, source = sample_jobs.find(args, model, root)
    own = jobs[args.worker[0] - 1 :: args.worker[1]]
    if plan is None:
        for job in jobs:
            trained_gan.check(model, making.shape(job))
    image_files.batches(model, own, making)  # says so where tile, overlap and batch do not go together
    if attempts:
        faithful.check(jobs[0].draw(None)[0])  # says so before anything is written
    settings = {
        "seed": args.seed,
        "checkpoint_step": model.folder.name,
        "checkpoint_sha256": checkpoint.fingerprint(model.params),
        **how,
        "tile": args.tile,
        "overlap": args.overlap,
        "source": source,
    }
    settings |= {} if args.shapes == "exact" else {"shapes": args.shapes}
    settings |= {"faithful": args.faithful, "attempts": attempts} if attempts else {}
    out = Path(args.out)
    manifest = manifests.open_manifest(out, "sample", settings, defaults=DEFAULTS)
    manifest |= {"config": model.metadata["config"], "intensity": model.metadata["intensity"]}
    folders = image_files.folders(model)
    manifests.make_folders(out, folders)
    _advise(jobs, making.rounded)

    def there(name):
        return all((out / folder / f"{name}.tif").is_file() for folder in folders)

    drawn = bool(args.recipe) or (plan is None and model.config.gan.mask == "sketch" and not args.sketches)
    noisy = plan is not None or model.config.model.noise_channel

    def planned(name):
        return {"keys": [["simulate", name]] * drawn + [["sample", name]] * noisy}

    def make(todo, done):
        def told(name, entry):
            done(name, entry | {"versions": manifest["versions"]})

        work = image_files.batches(model, own, making, todo)
        image_files.make(model, root, out, work, making, told, profile=args.profile)

    names = [job.name for job in jobs]
    if manifests.fill(out, manifest, names, there, make, planned=planned, worker=args.worker):
        print(f"done: {len(jobs)} annotated images in {out}")
        if attempts:
            files = json.loads((out / manifests.NAME).read_text())["files"]
            print(faithful.summary([files[name] for name in names]))
    else:
        print(f"worker {args.worker[0]} of {args.worker[1]} is done, others are not yet")


def _how(args, model) -> tuple:
    """The sampler's plan, None for a GAN, and what the manifest tells of how the network is run."""
    from jaxsynth import trained

    if model.config.task == "gan":
        own = model.config.gan
        usual = {"alpha": own.alpha_vox, "beta": own.beta_vox, "background_label": own.background_label}
        for name, value in usual.items():
            if getattr(args, name) is None:
                setattr(args, name, value)
        return None, {"alpha": args.alpha, "beta": args.beta}
    t_start = min(T_START, model.t_max) if args.t_start is None else args.t_start
    options = {"spacing": args.spacing, "eta": args.eta, "variance": args.variance}
    plan = trained.make_plan(model, t_start, args.sampler, args.num_evaluations, **options)
    how = {"t_start": t_start, "sampler": args.sampler or trained.default_sampler(model)}
    return plan, how | {"num_evaluations": plan.num_evaluations, **options, "sigma": args.sigma}


def _advise(jobs, rounded: bool) -> None:
    """Says so where rounded shapes would spare much compiling."""
    from jaxsynth import trained

    shapes = {job.shape for job in jobs}
    fewer = {trained.rounded(shape) for shape in shapes}
    if len(shapes) > MANY_SHAPES and len(fewer) < len(shapes) and not rounded:
        print(f"images of {len(shapes)} shapes, each compiled on its own; --shapes rounded would compile {len(fewer)}")


def _check(args, model) -> None:
    """Raises InputError where an argument makes no sense."""
    ndim, gan = model.ndim, model.config.task == "gan"
    for name, default in (ONLY_DIFFUSION if gan else ONLY_GAN).items():
        if getattr(args, name) != default:
            raise InputError(f"--{name} is for {'diffusion models' if gan else 'GANs'}; {args.checkpoint} is none")
    if gan and args.sketches and model.config.gan.mask != "sketch":
        raise InputError(f"--sketches: this GAN draws from {model.config.gan.mask}; give --labels FOLDER")
    if not (args.recipe or args.sketches or (gan and args.labels)):
        raise InputError(f"nothing to start from: give --{'labels' if gan else 'sketches'} FOLDER or --recipe NAME")
    for name in ("alpha", "beta"):
        if getattr(args, name) is not None and not 0 < getattr(args, name) < math.inf:
            raise InputError(f"--{name}: expected more than 0 voxels; got {getattr(args, name)}")
    if gan and args.faithful == "redraw":
        raise InputError("--faithful redraw: a GAN makes the same image again; use --faithful drop")
    if not 0 <= args.sigma < 100:
        raise InputError(f"--sigma must lie in 0..100 voxels, got {args.sigma}")
    for name, value in (("num", args.num), ("tile_batch", args.tile_batch), ("batch", args.batch)):
        if value is not None and value < 1:
            raise InputError(f"--{name} must be at least 1, got {value}")
    if not 0 <= args.seed < 2**32:
        raise InputError(f"--seed must lie in 0..{2**32 - 1}, got {args.seed}")
    wrong = ("labels",) if args.recipe else ("shape", "cells", "spacing_um")
    for name in wrong:
        if getattr(args, name) is not None:
            given = next(flag for flag in ("recipe", "sketches", "labels") if getattr(args, flag))
            raise InputError(f"--{name} does not go with --{given}")
    if args.scratch is not None and not Path(args.scratch).is_dir():
        raise InputError(f"--scratch {args.scratch}: no such folder")
    if args.scratch is not None and (args.batch is not None or args.shapes == "rounded"):
        raise InputError(f"--{'shapes rounded' if args.batch is None else 'batch'} does not go with --scratch")
    if args.scratch is not None and args.faithful is not None:
        raise InputError("--faithful does not go with --scratch")
    if args.attempts is not None and (args.faithful != "redraw" or args.attempts < 1):
        raise InputError(f"--attempts: expected 1 or more, with --faithful redraw; got {args.attempts}")
    for name, sizes, least in (("tile", args.tile, 8), ("overlap", args.overlap, 0)):
        if sizes is not None and (len(sizes) != ndim or min(sizes) < least):
            raise InputError(f"--{name}: expected {ndim} whole numbers of {least} or more; got {sizes}")


if __name__ == "__main__":
    main()
