"""Makes label images and sketches, from a recipe or from your own label images.

    python -m jaxsynth.simulate --recipe hela --num 10 --out sim/hela --preview
    python -m jaxsynth.simulate --recipe celegans --num 2 --shape 32,128,128 --render --out sim/celegans
    python -m jaxsynth.simulate --recipe nuclei --num 1 --frames 20 --out sim/series
    python -m jaxsynth.simulate --recipe danio --centres masks/ --out sim/again
    python -m jaxsynth.simulate --labels masks/ --images images/ --checkpoint runs/mine --out sim/mine
    python -m jaxsynth.simulate --labels masks/ --fit_shape organism --out organism.npz

Equal names lie in OUT/labels and OUT/sketches (float32 in [-1, 1]) and, where asked for or where the tissue has them:
images/ (uint16 camera counts), nuclei/, membrane/ and sketches_nuclei/ of cells with membranes, labels_true/ and one
folder per map. OUT/manifest.json tells how to make every file again. Finished files are skipped on a second run, and a
file is the same whatever else is made, and by how many workers.

Recipes: nuclei (2D or 3D, any cultured tissue), gowt1, hela (2D nuclei), celegans, danio, harmonics, embryo_elongated
(3D nuclei), tribolium (nuclei of an embryo's surface, as a map), arabidopsis, drosophila (3D, cells between membranes).
"""

import math
from pathlib import Path

from jaxsynth import cli
from jaxsynth import manifest as manifests
from jaxsynth.errors import InputError

MAPS = ("boundary", "distance", "seeds", "position")
# What goes with which source of labels only.
RECIPE_ONLY = ("num", "shape", "cells", "render", "psf", "overlap", "clustering", "centres", "mask", "shape_model",
               "frames", "cycle_frames", "step_um", "death_rate", "brightness_images", "brightness_labels")  # fmt: skip
LABELS_ONLY = ("images", "membranes", "fit_shape", "modes")
NOT_WITH_FRAMES = ("maps", "merge", "overlap", "centres")
NOT_WITH_FIT = ("images", "membranes", "checkpoint", "maps", "merge", "worker", "preview", "normalization")


def main() -> None:
    """Entry point of the command."""
    cli.run(_main)


def _main() -> None:
    args = _parser().parse_args()
    _check(args)
    cli.enable_compilation_cache()
    if args.fit_shape is not None:
        from jaxsynth import label_files

        label_files.fit_shape(args)
    elif args.recipe is None:
        from jaxsynth import label_files

        label_files.make(args)
    elif args.frames is not None:
        from jaxsynth import timeseries

        timeseries.make(args)
    else:
        from jaxsynth import recipe_files

        recipe_files.make(args)


def _parser() -> cli.Parser:
    parser = cli.Parser("jaxsynth.simulate", __doc__)
    add = parser.add_argument
    add("--out", required=True, help="folder of the results (a file .npz with --fit_shape)")
    add("--seed", type=int, default=0)
    add("--spacing", "--spacing_um", dest="spacing_um", type=cli.numbers(float), metavar="Z,Y,X",
        help="micrometres per voxel; default: the recipe's, or what the files state")  # fmt: skip
    add("--checkpoint", help="folder of a training run, whose brightness the sketches shall have")
    add("--normalization", choices=("minmax_shifted", "percentile", "asinh"),
        help="of --images or --brightness_images where no --checkpoint is given; default asinh")  # fmt: skip
    add("--background_label", type=int, help="label of the background in your label images (some sets use 1)")
    add("--preview", action="store_true", help="also draw OUT/preview.png, a contact sheet of the first specimens")
    add("--maps", type=_names, metavar="NAME,...",
        help="also write boundary (uint8), distance (float32, micrometres, positive within cells), seeds (labels, the "
             "deepest voxel of each cell) or position (float32, in relation to the organism's surface, or to that "
             "of its cells, gaps between them closed)")  # fmt: skip
    add("--alpha", type=float, help="scale of the position map within the organism, voxels along x; default 100")
    add("--beta", type=float, help="its scale outside; default: as --alpha")
    add("--merge", type=float, metavar="RATE",
        help="share of cells that grow together with a neighbour, as in a bad segmentation: so in labels/, the true "
             "ones in labels_true/; sketches, images and maps show the true ones")  # fmt: skip
    add("--worker", type=manifests.worker, metavar="I/N",
        help="make every N-th file from the I-th on: start 1/N to N/N at once, on one machine or many")  # fmt: skip
    simulated = parser.add_argument_group("from a recipe")
    add = simulated.add_argument
    add("--recipe", help="one of those above")
    add("--num", type=int, help="how many specimens; with --centres at most so many")
    add("--shape", type=cli.numbers(int), metavar="Z,Y,X", help="voxels; default: the paper's size")
    add("--cells", type=int, help="cells per specimen; default: drawn for each")
    add("--render", action="store_true", help="also write a microscope model's picture of each")
    add("--psf", help="measured point spread function for --render: one bead, TIFF that states its voxel size")
    add("--overlap", type=float, metavar="SHARE",
        help="0 to 1, 2D: cells may come closer than touching by this share, as in projections. labels/ are then "
             "stacks of planes (M, Y, X): plane 0 holds the nearest cell of every pixel, plane 1 the next, and so on; "
             "a cell is where any plane has its label")  # fmt: skip
    add(
        "--clustering",
        type=float,
        metavar="P",
        help="fields of nuclei: probability of a cell to be put next to one already there; default: the recipe's",
    )
    add("--centres", metavar="PATH",
        help="cells where you have them: label images (the centroids of their regions, shape and voxel size) "
             "or tables (.csv, .tsv; columns z,y,x in micrometres from the corner); one specimen per file")  # fmt: skip
    add("--mask", help="label image or mask: cells lie where it is not 0; its shape is the specimens'")
    add("--shape_model", metavar="FILE.npz", help="of organisms, as --fit_shape makes it: each specimen gets a new one")
    add("--brightness_images", metavar="DIR", help="cells as bright as those of these images")
    add("--brightness_labels", metavar="DIR", help="their label images, same names")
    series = parser.add_argument_group("time series, from a recipe of nuclei")
    add = series.add_argument
    add("--frames", type=int, metavar="T",
        help="sequences of T frames in the Cell Tracking Challenge's layout: 01/, 01_GT/ and 01_sketches/; cells are "
             "ellipsoids, bent where the recipe's are, and always rendered")  # fmt: skip
    add("--cycle_frames", type=float, help="mean time from birth to division; default 20, inf: none divides")
    add("--step_um", type=float, help="motion per frame; default 6 %% of the recipe's typical radius")
    add("--death_rate", type=float, help="probability per cell and frame; default 0")
    own = parser.add_argument_group("from your own label images")
    add = own.add_argument
    add("--labels", help="folder, glob or file")
    add("--images", help="the real images, same names: each cell gets its mean brightness in them")
    add("--membranes", type=float, metavar="UM",
        help="sketch the walls of the cells, so many micrometres thick (voxels where files state no size), in place of "
             "their bodies; with --images each as bright as on average in them")  # fmt: skip
    add("--fit_shape", choices=("organism", "cell"), help="write a statistical shape model of them to OUT instead")
    add("--modes", type=int, help="its number of modes; default 10")
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _check(args) -> None:
    """Refuses what does not go together, before any work."""
    if (args.recipe is None) == (args.labels is None):
        raise InputError("expected either --recipe NAME or --labels DIR")
    chosen = "--recipe" if args.recipe is not None else "--labels"
    _refuse(args, LABELS_ONLY if args.recipe is not None else RECIPE_ONLY,
            f"goes with {'--labels' if args.recipe is not None else '--recipe'}, not with {chosen}")  # fmt: skip
    if args.recipe is not None:
        _check_recipe(args)
    elif args.fit_shape is not None:
        _refuse(args, NOT_WITH_FIT, "does not go with --fit_shape")
        if Path(args.out).suffix != ".npz":
            raise InputError(f"--out: expected a file .npz for the shape model; got {args.out}")
    elif args.modes is not None:
        raise InputError("--modes: goes with --fit_shape")
    if args.checkpoint and args.normalization:
        raise InputError("--normalization: the checkpoint has its own; give one of the two")
    if args.normalization and not (args.images or args.brightness_images):
        raise InputError("--normalization: goes with --images or --brightness_images")
    _check_ranges(args)
    args.background_label = args.background_label or 0


def _check_recipe(args) -> None:
    if args.num is None and args.centres is None:
        raise InputError("--num: expected the number of specimens to make")
    if args.background_label is not None and not (args.centres or args.mask or args.brightness_labels):
        raise InputError("--background_label: goes with --labels, --centres, --mask or --brightness_labels")
    if (args.brightness_images is None) != (args.brightness_labels is None):
        raise InputError("--brightness_images, --brightness_labels: expected both or neither")
    if args.frames is None:
        _refuse(args, ("cycle_frames", "step_um", "death_rate"), "goes with --frames")
        if args.psf and not args.render:
            raise InputError("--psf: goes with --render")
    else:
        _refuse(args, NOT_WITH_FRAMES, "does not go with --frames")
    if args.centres is not None:
        _refuse(args, ("cells", "mask", "shape_model", "clustering"), "does not go with --centres")
    if args.mask and args.shape_model:
        raise InputError("--mask, --shape_model: both say where cells may be; give one of the two")
    if args.merge and args.overlap:
        raise InputError("--merge: does not go with --overlap")


def _check_ranges(args) -> None:
    def expect(name, right, what):
        value = getattr(args, name)
        if value is not None and not right(value):
            raise InputError(f"--{name}: expected {what}; got {value}")

    expect("num", lambda x: x >= 1, "1 or more")
    expect("cells", lambda x: x >= 0, "0 or more")
    expect("seed", lambda x: 0 <= x < 2**32, f"0 to {2**32 - 1}")
    expect("background_label", lambda x: x >= 0, "0 or more")
    expect("modes", lambda x: x >= 0, "0 or more")
    expect("membranes", lambda x: 0 < x < math.inf, "a positive number")
    expect("merge", lambda x: 0 <= x <= 1, "a share of 0 to 1")
    expect("overlap", lambda x: 0 <= x < 1, "a share of 0 to below 1")
    expect("clustering", lambda x: 0 <= x <= 1, "a probability")
    expect("frames", lambda x: 1 <= x <= 10000, "1 to 10000")
    expect("cycle_frames", lambda x: x >= 1, "1 or more")
    expect("step_um", lambda x: 0 <= x < math.inf, "0 or more")
    expect("death_rate", lambda x: 0 <= x <= 1, "a probability")
    expect("spacing_um", lambda x: all(0 < step < math.inf for step in x), "positive numbers")
    for name in ("alpha", "beta"):
        expect(name, lambda x: 0 < x < math.inf, "a positive number")
        if getattr(args, name) is not None and "position" not in (args.maps or ()):
            raise InputError(f"--{name}: goes with --maps position")
    unknown = [name for name in args.maps or () if name not in MAPS]
    if unknown:
        raise InputError(f"--maps: expected some of {', '.join(MAPS)}; got {unknown[0]!r}")


def _refuse(args, names: tuple[str, ...], reason: str) -> None:
    """Raises InputError for the first of `names` that the user gave."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value is not False:
            raise InputError(f"--{name}: {reason}")


if __name__ == "__main__":
    main()
