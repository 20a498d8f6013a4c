"""Finds how to use a trained model: where to start from (t_start, sigma), or which sampler in how many steps.

    python -m jaxsynth.tune --checkpoint runs/mine --real FOLDER --sketches DIR --out runs/mine/tune
    python -m jaxsynth.tune --checkpoint runs/mine --real FOLDER --sketches DIR --out runs/mine/samplers --samplers

Sketches are those of the real images' own cells, with equal names: `jaxsynth.simulate --labels MASKS --images FOLDER
--checkpoint runs/mine` makes them. A few images, cropped, are enough.

t_start and sigma: noised far enough, a sketch cannot be told from a real image; noised further, its cells are lost.
Forward: the distance of the grey values (KLD, Bhattacharyya) of noised sketches from those of noised real images, over
t_start and the blur sigma. Backward: both denoised again, scored against the real image (PSNR, SSIM, MAE, ZNCC).
Recommended is the least t_start with a KLD of at most 0.05, and of the sigmas that reach it there the one whose images
have the highest ZNCC (with --forward_only or without pairs: the one with the lowest KLD). OUT gets tune.json, tune.png,
tune_images.png; what is finished is not computed again.

Samplers (--samplers): each sampler at a few numbers of network evaluations, against many steps of DDPM.
"""

import argparse
import math

from jaxsynth import cli
from jaxsynth.errors import InputError

# What belongs to one of the two analyses: name -> default.
START = {"t_starts": None, "sigmas": (0.0, 1.0, 2.0), "backward": None, "sampler": None, "num_evaluations": None,
         "forward_only": False}  # fmt: skip
SAMPLERS = {"t_start": None, "sigma": 1.0, "evaluations": (50, 20, 10, 5), "only": None, "reference": 400}


def main() -> None:
    """Entry point of the command."""
    cli.run(_main)


def _main() -> None:
    args = _parse()
    cli.keep_memory()
    cli.enable_compilation_cache()
    if args.samplers:
        from jaxsynth import tune_samplers

        tune_samplers.compare(args)
    else:
        from jaxsynth import tune_start

        tune_start.analyse(args)


def _parse() -> argparse.Namespace:
    parser = cli.Parser("jaxsynth.tune", __doc__)
    parser.add_argument("--checkpoint", required=True, help="a training run's folder, or one checkpoint in it")
    parser.add_argument("--step", default="best", help="which checkpoint: best, latest or a step (default: best)")
    parser.add_argument("--real", required=True, help="folder, glob or file of real images")
    parser.add_argument("--sketches", required=True, help="folder of sketches, or a data set with sketches/")
    parser.add_argument("--out", required=True, help="folder of the results")
    parser.add_argument("--num", type=int, default=4, help="at most so many images (default: 4)")
    parser.add_argument("--crop", type=cli.numbers(int), metavar="Z,Y,X", help="the middle of every image, voxels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tile", type=cli.numbers(int), metavar="Z,Y,X", help="largest tile, as in jaxsynth.sample")
    start = parser.add_argument_group("t_start and sigma")
    start.add_argument("--t_starts", type=cli.numbers(int), metavar="T,...",
                       help="forward (default: 100,200,... as far as the model was trained)")  # fmt: skip
    start.add_argument("--sigmas", type=cli.numbers(float), metavar="S,...",
                       help="blurs of the sketch, voxels (default: 0,1,2)")  # fmt: skip
    start.add_argument("--backward", type=cli.numbers(int), metavar="T,...",
                       help="where to denoise from, and from the recommended one (default: five of them)")  # fmt: skip
    start.add_argument("--forward_only", action="store_true", help="no denoising: seconds instead of minutes to hours")
    start.add_argument("--sampler", help="as in jaxsynth.sample")
    start.add_argument("--num_evaluations", type=int, help="network evaluations, as in jaxsynth.sample")
    samplers = parser.add_argument_group("samplers")
    samplers.add_argument("--samplers", action="store_true", help="compare the samplers")
    samplers.add_argument("--t_start", type=int, help="noise level of the start (default: 400, or the model's last)")
    samplers.add_argument("--sigma", type=float, help="blur of the sketch, voxels (default: 1)")
    samplers.add_argument("--evaluations", type=cli.numbers(int), metavar="N,...",
                          help="numbers of network evaluations (default: 50,20,10,5)")  # fmt: skip
    samplers.add_argument("--only", type=lambda text: tuple(text.split(",")), metavar="NAME,...",
                          help="these samplers alone, such as ddim,dpmpp")  # fmt: skip
    samplers.add_argument("--reference", type=int, help="DDPM steps of the reference (default: 400)")
    args = parser.parse_args()
    _check(args)
    return args


def _check(args) -> None:
    """Refuses what makes no sense whatever the model, and fills in defaults."""
    for name in START if args.samplers else SAMPLERS:
        value = getattr(args, name)
        if value is not None and value is not False:  # 0 was given too
            raise InputError(f"--{name}: {'does not go' if args.samplers else 'goes'} with --samplers")
    for name, default in (SAMPLERS if args.samplers else START).items():
        setattr(args, name, default if getattr(args, name) is None else getattr(args, name))

    def expect(name, right, what):
        values = getattr(args, name)
        for value in values if isinstance(values, tuple) else (values,):
            if value is not None and not right(value):
                raise InputError(f"--{name}: expected {what}; got {value}")

    for name in ("num", "crop", "tile", "t_starts", "backward", "num_evaluations", "t_start", "evaluations",
                 "reference"):  # fmt: skip
        expect(name, lambda x: x >= 1, "1 or more")
    for name in ("sigma", "sigmas"):
        expect(name, lambda x: 0 <= x < 100 and math.isfinite(x), "0 to below 100 voxels")
    expect("seed", lambda x: 0 <= x < 2**32, f"0 to {2**32 - 1}")


if __name__ == "__main__":
    main()
