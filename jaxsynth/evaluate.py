"""Compares synthetic images with real ones.

    python -m jaxsynth.evaluate --real FOLDER --synthetic runs/mine/dataset --out runs/mine/evaluation
    python -m jaxsynth.evaluate --real FOLDER --synthetic runs/mine/dataset --paired --also dim=runs/dim/dataset
    python -m jaxsynth.evaluate --labels --real MASKS --synthetic sim/hela --spacing_um 0.645,0.645
    python -m jaxsynth.evaluate --fidelity --synthetic runs/mine/dataset --real FOLDER --real_labels MASKS

As sets: histogram distances (KLD, Bhattacharyya), Frechet distance of local features, spectra, profiles of brightness
along x and z and spectra of the central xz slices, background noise, texture and brightness, with one half of the real
images against the other as the yardstick. With --paired, files of equal name show the same cells, and PSNR, SSIM, MAE,
NRMSE and ZNCC are taken of each pair too. --also, as often as wanted, sets further synthetic images beside these
(levels of quality, say). OUT gets evaluation.json, evaluation.png, profiles.png, overview.png.

With --labels, label images: size, elongation, solidity, nearest neighbour, density of the cells, by Wasserstein and
Kolmogorov-Smirnov distance, the halves of the real ones as the yardstick. OUT gets metrics.json, distributions.png.

With --fidelity, images of a data set against its own labels: vanished cells (labelled, not seen) and phantoms (seen,
not labelled), by a detector that sees no labels or by --detections. OUT gets fidelity.json, fidelity.png.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path

from jaxsynth import cli
from jaxsynth import manifest as manifests
from jaxsynth.compare_labels import spread
from jaxsynth.errors import InputError


def main() -> None:
    """Entry point of the command."""
    cli.run(_main)


def _main() -> None:
    parser = cli.Parser("jaxsynth.evaluate", __doc__)
    parser.add_argument("--real", help="folder, glob or file of real images")
    parser.add_argument("--synthetic", required=True, help="folder of synthetic images, or a data set with images/")
    parser.add_argument("--paired", action="store_true", help="files of equal name show the same cells")
    parser.add_argument(
        "--also", action="append", metavar="[NAME=]DIR", help="a further synthetic set; may be repeated"
    )
    parser.add_argument("--out", help="folder of the results (default: beside the synthetic images)")
    parser.add_argument("--num", type=int, help="compare at most so many images of each set")
    parser.add_argument("--channel", type=int, help="channel of the real images")
    parser.add_argument("--dataset", help="data set inside HDF5 files (default: data/image)")
    masks = parser.add_argument_group("label images")
    masks.add_argument("--labels", action="store_true", help="both are label images (or data sets with labels/)")
    masks.add_argument("--background_label", type=int, default=0,
                       help="label of the background in the real ones, beside 0 (some sets use 1)")  # fmt: skip
    masks.add_argument("--spacing_um", type=cli.numbers(float), metavar="Z,Y,X",
                       help="micrometres per voxel of files that state none; default: voxels")  # fmt: skip
    faults = parser.add_argument_group("fidelity")
    faults.add_argument("--fidelity", action="store_true", help="judge the images of a data set by its own labels")
    faults.add_argument("--detections", metavar="DIR", help="segmentation of the synthetic images, files of equal name")
    faults.add_argument("--real_labels", metavar="DIR", help="label images of the real ones, files of equal name")
    faults.add_argument("--real_detections", metavar="DIR", help="segmentation of the real ones, with --detections")
    args = parser.parse_args()
    _check(args)
    if args.fidelity:
        from jaxsynth import fidelity_report

        fidelity_report.report(args)
    elif args.labels:
        from jaxsynth import compare_labels

        compare_labels.compare(args)
    else:
        evaluate(args)


def _check(args) -> None:
    if args.num is not None and args.num < 1:
        raise InputError(f"--num: expected 1 or more; got {args.num}")
    mode = "--labels" if args.labels else "--fidelity" if args.fidelity else "images"
    if args.labels and args.fidelity:
        raise InputError("--labels does not go with --fidelity")
    if args.real is None and not args.fidelity:
        raise InputError("the following arguments are required: --real")
    options = {"images": {"--paired": args.paired, "--dataset": args.dataset, "--channel": args.channel is not None,
                          "--also": args.also}}  # fmt: skip
    options["--labels"] = {"--background_label": args.background_label, "--spacing_um": args.spacing_um is not None}
    own = ("detections", "real_labels", "real_detections")
    options["--fidelity"] = {f"--{name}": getattr(args, name) is not None for name in own}
    if args.fidelity:
        del options["images"]["--channel"]
        if (args.real is None) != (args.real_labels is None):
            raise InputError("--real and --real_labels go together")
        if (args.real_detections is not None) != (args.real is not None and args.detections is not None):
            raise InputError("--real_detections: goes with --real and --detections, as one detector judges both sets")
    for name, place in ((n, p) for p in options if p != mode for n, given in options[p].items() if given):
        raise InputError(f"{name}: goes with {place}" + (f", not with {mode}" if place == "images" else ""))
    if args.background_label < 0:
        raise InputError(f"--background_label: expected 0 or more; got {args.background_label}")
    if args.spacing_um is not None and not all(0 < step < math.inf for step in args.spacing_um):
        raise InputError(f"--spacing_um: expected positive numbers; got {args.spacing_um}")


def evaluate(args) -> dict:
    """Compares and writes; returns what evaluation.json holds.

    Raises:
      InputError: unusable images; nothing has been written then.
    """
    import jax
    import numpy as np

    from jaxsynth import __version__, compare_images, compare_profiles, evaluation_report
    from jaxsynth.data import volumes

    folder = Path(args.synthetic)
    real = volumes.open_set(args.real, channel=args.channel, dataset=args.dataset)
    made = {"synthetic": _open(args.synthetic, real, "--synthetic")}
    for further in args.also or ():
        name, given, place = further.partition("=")
        if not given or Path(further).exists():
            name, place = Path(further).resolve().name, further
        if name in ("", "real", "real, other half", "sketch", *made):
            raise InputError(f"--also {further}: expected a name of its own, NAME=DIR; {name!r} is taken")
        made[name] = _open(place, real, "--also")
    real_all, partners = real, {}
    if args.paired:
        for name, images in made.items():
            pairs = _pairs(real_all, images)[: args.num]
            partners[name] = volumes.subset(real_all, [i for i, _ in pairs])
            made[name] = volumes.subset(images, [j for _, j in pairs])
        real = partners["synthetic"]
    elif args.num:
        real = volumes.subset(real, spread(len(real.paths), args.num))
        made = {name: volumes.subset(images, spread(len(images.paths), args.num)) for name, images in made.items()}
    synthetic = made["synthetic"]
    out = Path(args.out) if args.out else _images(folder).parent
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file, expected a folder")

    shapes = [shape for images in (real_all, *made.values()) for shape in images.shapes]
    ruler = compare_images.fit(lambda: volumes.each(real_all), lambda: volumes.each(real), shapes)
    spacing = real.spacing_um or synthetic.spacing_um

    def measure(image):
        return compare_images.measure(image, ruler) | compare_profiles.measure(image, ruler, spacing)

    def pool(rows):
        return compare_images.pool(rows) | compare_profiles.pool(rows)

    def distances(one, other):
        return compare_images.distances(one, other, measured["real"]) | compare_profiles.distances(one, other)

    rows = {name: [measure(image) for image in volumes.each(images)] for name, images in {"real": real, **made}.items()}
    drawn = _sketches(folder, [path.stem for path in synthetic.paths])
    if drawn:
        rows["sketch"] = [measure(read()) for read in drawn]
    measured = {name: pool(row) for name, row in rows.items()}
    found = {name: distances(measured["real"], row) for name, row in measured.items() if name != "real"}
    half = len(real.paths) // 2
    if half:
        measured["real, other half"] = pool(rows["real"][half:])
        found["real, other half"] = distances(pool(rows["real"][:half]), measured["real, other half"])
    result = {
        "arguments": vars(args),
        "versions": {"jaxsynth": __version__, "jax": jax.__version__, "numpy": np.__version__},
        "real": [str(path.name) for path in real.paths],
        "synthetic": [str(path.name) for path in synthetic.paths],
        "distances_from_real": found,
        "statistics": {name: row["statistics"] for name, row in measured.items() if name != "real, other half"},
    }
    if args.paired:
        scores = {name: _paired(partners[name], images, ruler, spacing) for name, images in made.items()}
        result["paired"] = scores.pop("synthetic")
        if scores:
            result["paired_also"] = scores
    manifests.make_folders(out, ("",))
    manifests.write_json(out / "evaluation.json", compare_images.finite(result))
    evaluation_report.draw(out, folder, real, synthetic, measured, result, ruler, spacing)
    evaluation_report.show(result)
    written = ("evaluation.json", "evaluation.png", "profiles.png", "overview.png")
    print(f"written: {', '.join(str(out / name) for name in written)}")
    return result


def _images(folder) -> Path:
    """The folder itself, or that of the images where it is a data set."""
    return Path(folder) / "images" if (Path(folder) / "images").is_dir() else Path(folder)


def _open(folder, real, argument: str):
    """The synthetic images of a folder. Raises InputError where they are not of the real ones' rank."""
    from jaxsynth.data import volumes

    images = volumes.open_set(_images(folder))
    if real.ndim != images.ndim:
        raise InputError(f"--real images are {real.ndim}D, {argument} {images.ndim}D")
    return images


def _pairs(real, synthetic) -> list[tuple[int, int]]:
    """(index of the real, index of the synthetic image) of equal names and shapes, every synthetic one once.

    Raises:
      InputError: a synthetic image without a real one, or of another shape.
    """
    by_name = {path.stem: i for i, path in enumerate(real.paths)}
    pairs = []
    for j, path in enumerate(synthetic.paths):
        if path.stem not in by_name:
            raise InputError(f"--paired: no real image is named as {path}")
        i = by_name[path.stem]
        if real.shapes[i] != synthetic.shapes[j]:
            raise InputError(
                f"{path}: expected the shape of {real.paths[i]}, {real.shapes[i]}; got {synthetic.shapes[j]}"
            )
        pairs.append((i, j))
    return pairs


def _paired(real, synthetic, ruler, spacing) -> dict:
    """Scores of every pair (`pair` of `compare_images` and `compare_profiles`), with mean and standard deviation."""
    import numpy as np

    from jaxsynth import compare_images, compare_profiles
    from jaxsynth.data import volumes

    rows = [
        {"name": path.name, **compare_images.pair(one, other, ruler),
         **compare_profiles.pair(one, other, ruler, spacing)}
        for path, one, other in zip(synthetic.paths, volumes.each(real), volumes.each(synthetic), strict=True)
    ]  # fmt: skip
    names = [name for name in rows[0] if name != "name"]
    return {
        "range": [ruler.low, ruler.high],
        "mean": {name: float(np.mean([row[name] for row in rows])) for name in names},
        "sd": {name: float(np.std([row[name] for row in rows])) for name in names},
        "images": rows,
    }


def _sketches(folder: Path, names: list[str]) -> list[Callable]:
    """Readers of the data set's sketches in the real images' unit; [] where it has none or their scale is unknown."""
    from jaxsynth.data import intensity as intensities
    from jaxsynth.data import volumes

    try:
        content = json.loads((folder / manifests.NAME).read_text())
        scale = intensities.Intensity.from_dict(content["intensity"])
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        return []
    files = [folder / "sketches" / f"{name}.tif" for name in names]
    if not all(file.is_file() for file in files):
        return []
    return [lambda file=file: intensities.denormalise(volumes.read(file), scale) for file in files]


if __name__ == "__main__":
    main()
