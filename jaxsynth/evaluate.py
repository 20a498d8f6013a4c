"""Compares synthetic images with real ones.

    python -m jaxsynth.evaluate --real FOLDER --synthetic runs/mine/dataset --out runs/mine/evaluation
    python -m jaxsynth.evaluate --real FOLDER --synthetic runs/mine/dataset --paired
    python -m jaxsynth.evaluate --labels --real MASKS --synthetic sim/hela --spacing_um 0.645,0.645
    python -m jaxsynth.evaluate --fidelity --synthetic runs/mine/dataset --real FOLDER --real_labels MASKS

As sets: histogram distances (KLD, Bhattacharyya), Frechet distance of local features, spectra, background noise,
texture and brightness, with one half of the real images against the other as the yardstick. With --paired, files of
equal name show the same cells, and PSNR, SSIM, MAE, NRMSE and ZNCC are taken of each pair too. OUT gets
evaluation.json, evaluation.png, overview.png.

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

ROWS = 4  # of the overview


def main() -> None:
    """Entry point of the command."""
    cli.run(_main)


def _main() -> None:
    parser = cli.Parser("jaxsynth.evaluate", __doc__)
    parser.add_argument("--real", help="folder, glob or file of real images")
    parser.add_argument("--synthetic", required=True, help="folder of synthetic images, or a data set with images/")
    parser.add_argument("--paired", action="store_true", help="files of equal name show the same cells")
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
    options = {"images": {"--paired": args.paired, "--dataset": args.dataset, "--channel": args.channel is not None}}
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

    from jaxsynth import __version__, compare_images, figures
    from jaxsynth.data import volumes

    folder = Path(args.synthetic)
    images = folder / "images" if (folder / "images").is_dir() else folder
    real = volumes.open_set(args.real, channel=args.channel, dataset=args.dataset)
    synthetic = volumes.open_set(images)
    if real.ndim != synthetic.ndim:
        raise InputError(f"--real images are {real.ndim}D, --synthetic {synthetic.ndim}D")
    pairs = _pairs(real, synthetic) if args.paired else None
    real_all = real
    if pairs:
        pairs = pairs[: args.num]
        real = volumes.subset(real, [i for i, _ in pairs])
        synthetic = volumes.subset(synthetic, [j for _, j in pairs])
    elif args.num:
        real, synthetic = (volumes.subset(s, spread(len(s.paths), args.num)) for s in (real, synthetic))
    out = Path(args.out) if args.out else images.parent
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file, expected a folder")

    ruler = compare_images.fit(
        lambda: volumes.each(real_all), lambda: volumes.each(real), (*real_all.shapes, *synthetic.shapes)
    )
    rows = {name: [compare_images.measure(image, ruler) for image in volumes.each(images)]
            for name, images in (("real", real), ("synthetic", synthetic))}  # fmt: skip
    drawn = _sketches(folder, [path.stem for path in synthetic.paths])
    if drawn:
        rows["sketch"] = [compare_images.measure(read(), ruler) for read in drawn]
    measured = {name: compare_images.pool(row) for name, row in rows.items()}
    distances = {name: compare_images.distances(measured["real"], row, measured["real"])
                 for name, row in measured.items() if name != "real"}  # fmt: skip
    half = len(real.paths) // 2
    if half:
        first = compare_images.pool(rows["real"][:half])
        measured["real, other half"] = compare_images.pool(rows["real"][half:])
        distances["real, other half"] = compare_images.distances(first, measured["real, other half"], measured["real"])
    result = {
        "arguments": vars(args),
        "versions": {"jaxsynth": __version__, "jax": jax.__version__, "numpy": np.__version__},
        "real": [str(path.name) for path in real.paths],
        "synthetic": [str(path.name) for path in synthetic.paths],
        "distances_from_real": distances,
        "statistics": {name: row["statistics"] for name, row in measured.items() if name != "real, other half"},
    }
    if pairs:
        result["paired"] = _paired(real, synthetic, ruler)
    manifests.make_folders(out, ("",))
    manifests.write_json(out / "evaluation.json", compare_images.finite(result))
    _draw(figures, out, folder, real, synthetic, measured, result, ruler, bool(pairs))
    _report(result)
    print(f"written: {out / 'evaluation.json'}, {out / 'evaluation.png'}, {out / 'overview.png'}")
    return result


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


def _paired(real, synthetic, ruler) -> dict:
    """Scores of every pair (`compare_images.pair`), with mean and standard deviation."""
    import numpy as np

    from jaxsynth import compare_images
    from jaxsynth.data import volumes

    rows = [
        {"name": path.name, **compare_images.pair(one, other, ruler)}
        for path, one, other in zip(synthetic.paths, volumes.each(real), volumes.each(synthetic), strict=True)
    ]
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


def _draw(figures, out, folder, real, synthetic, measured, result, ruler, paired) -> None:
    import numpy as np

    from jaxsynth.data import volumes
    from jaxsynth.metrics import distribution

    scale, edges = ruler.scale, ruler.edges

    def stable(values):
        return np.arcsinh((np.asarray(values) - scale.background) / scale.scale)

    values = scale.background + scale.scale * np.sinh(np.linspace(stable(edges[0]), stable(edges[-1]), 6))
    texts = [f"{value:.3g}" if real.dtype.kind == "f" else str(round(value)) for value in values]
    widths = np.diff(stable(edges))
    panels = [
        {"title": "brightness", "x": stable(edges), "log": True, "xlabel": "grey value (asinh axis)",
         "ylabel": "share of voxels per unit of the axis", "ticks": (stable([float(text) for text in texts]), texts),
         "lines": {name: row["counts"] / row["counts"].sum() / widths for name, row in measured.items()}},
        {"title": "spectrum", "x": distribution.frequencies(len(measured["real"]["spectrum"])), "log": True,
         "xlabel": "cycles per voxel", "ylabel": "power (asinh scale)",
         "lines": {name: row["spectrum"] for name, row in measured.items()}},
    ]  # fmt: skip
    figures.curves(out / "evaluation.png", panels, _table(result))

    chosen = spread(len(synthetic.paths), ROWS)
    shown = chosen if paired else spread(len(real.paths), len(chosen))
    columns = {"real": [volumes.load(real, i) for i in shown]}
    made = [synthetic.paths[i].stem for i in chosen]
    for title, read in (("labels", volumes.read_labels), ("sketches", volumes.read)):
        beside = [folder / title / f"{name}.tif" for name in made]
        if all(file.is_file() for file in beside):
            columns[title.replace("sketches", "sketch")] = [read(file) for file in beside]
    columns["synthetic"] = [volumes.load(synthetic, i) for i in chosen]
    # An unpaired real image shows other cells than its row: each is named where the name changes.
    names = {title: made for title in columns} | {"real": [real.paths[i].stem for i in shown]}
    spacing = real.spacing_um or synthetic.spacing_um
    aspect = spacing[0] / spacing[-1] if spacing and real.ndim == 3 else 1.0
    figures.overview(out / "overview.png", columns, names=names, aspect=aspect)


def _table(result: dict) -> list[list[str]]:
    """The numbers below the curves: distances, then what names a fault."""
    from jaxsynth.compare_images import DISTANCES

    distances, statistics = result["distances_from_real"], result["statistics"]
    names = ["real", *(name for name in ("synthetic", "sketch", "real, other half") if name in distances)]
    rows = [["", *names]]
    for key, title in DISTANCES.items():
        values = (distances.get(name, {}).get(key, math.nan) for name in names)
        rows.append([title, *(f"{value:.4f}" if math.isfinite(value) else "" for value in values)])
    for key in ("background_level", "background_noise_sd", "background_noise_correlation", "texture_scale_vox",
                "quantile_0.5", "quantile_0.95", "quantile_0.99"):  # fmt: skip
        values = (statistics.get(name, {}).get(key, math.nan) for name in names)
        rows.append([key.replace("_", " "), *map(_text, values)])
    for key in ("psnr", "ssim", "nrmse", "zncc") if "paired" in result else ():
        text = f"{result['paired']['mean'][key]:.3f} ± {result['paired']['sd'][key]:.3f}"
        rows.append([f"{key.upper()} of pairs", *(text if name == "synthetic" else "" for name in names)])
    return rows


def _text(value: float) -> str:
    if not math.isfinite(value):
        return ""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _report(result: dict) -> None:
    print(f"{'distance from real':<20} {'KLD':>8} {'BD':>8} {'Frechet':>8} {'spectrum dB':>12}")
    for name, row in result["distances_from_real"].items():
        print(f"{name:<20} {row['kld']:8.4f} {row['bhattacharyya']:8.4f} {row['frechet']:8.3f} "
              f"{row['spectral_distance_db']:12.2f}")  # fmt: skip
    columns = list(result["statistics"])
    print(f"{'':<28} " + " ".join(f"{name:>10}" for name in columns))
    for name in result["statistics"]["real"]:
        print(f"{name:<28} " + " ".join(f"{result['statistics'][column][name]:10.3f}" for column in columns))
    if "paired" in result:
        mean, sd = result["paired"]["mean"], result["paired"]["sd"]
        for name in mean:
            print(f"{name:<28} {mean[name]:10.4f} +- {sd[name]:.4f}")


if __name__ == "__main__":
    main()
