"""Compares the cells of synthetic label images with those of real ones: `jaxsynth.evaluate --labels`."""

from pathlib import Path

from jaxsynth import manifest as manifests
from jaxsynth.errors import InputError

TITLES = {
    "size": "size",
    "radius": "radius",
    "elongation": "elongation",
    "solidity": "solidity",
    "nearest": "nearest neighbour",
    "num_cells": "cells per image",
    "density": "density",
    "covered": "covered share",
    "cut": "cells cut by the border",
}
DRAWN = ("size", "elongation", "solidity", "nearest", "num_cells", "covered")


def compare(args) -> dict:
    """Compares and writes metrics.json and distributions.png; returns what the file holds.

    Args:
      args: real, synthetic, out, num, background_label, spacing_um, as `jaxsynth.evaluate` explains them.

    Raises:
      InputError: unusable label images; nothing has been written then.
    """
    import numpy as np

    from jaxsynth import __version__, figures
    from jaxsynth.data import volumes
    from jaxsynth.metrics import cells

    folder = Path(args.synthetic)
    made = folder / "labels" if (folder / "labels").is_dir() else folder
    out = Path(args.out) if args.out else (made.parent if made.is_dir() else folder.parent)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file, expected a folder")
    files = {}
    for name, place in (("real", args.real), ("synthetic", made)):
        found = volumes.find_files(place)
        files[name] = [found[i] for i in spread(len(found), args.num)] if args.num else found

    # One unit for all: micrometres where every file, or the user, tells them.
    stated = {file: volumes.spacing_um(file) or args.spacing_um for file in (*files["real"], *files["synthetic"])}
    silent = next((file for file, spacing in stated.items() if spacing is None), None)
    tables, empty, rank = {}, {}, None
    for name, found in files.items():
        tables[name], empty[name] = [], 0
        for file in found:
            labels = volumes.read_labels(file)
            if rank is None:
                rank, first = labels.ndim, file
            if labels.ndim != rank:
                raise InputError(f"{file}: is {labels.ndim}D {labels.shape}, but {first} is {rank}D")
            spacing = None if silent else stated[file]
            if spacing is not None and len(spacing) != rank:
                raise InputError(f"{file}: expected {rank} numbers of --spacing_um, as it is {rank}D; got {spacing}")
            if name == "real" and args.background_label:
                labels[labels == args.background_label] = 0
            tables[name].append(cells.measure(labels, spacing))
            empty[name] += not labels.any()
        if empty[name] == len(found):
            raise InputError(f"--{name} {found[0].parent}: no cells in any of {len(found)} label image(s)")

    result = {
        "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
        "versions": {"jaxsynth": __version__, "numpy": np.__version__},
        "real": [file.name for file in files["real"]],
        "synthetic": [file.name for file in files["synthetic"]],
        "statistics": cells.compare(tables["real"], tables["synthetic"]),
    }
    table = _table(result["statistics"])
    samples = {}
    for name in DRAWN:
        unit = result["statistics"][name]["unit"].replace("um", "µm")
        sets = {which: cells.values(rows, name) for which, rows in tables.items()}
        samples[TITLES[name]] = (f"{TITLES[name]}, {unit}" if unit else TITLES[name], sets)
    manifests.make_folders(out, ("",))
    manifests.write_json(out / "metrics.json", result)
    figures.distributions(out / "distributions.png", samples, table)

    for row in table:
        print("  ".join(f"{text:<28}" if i == 0 else f"{text:>24}" for i, text in enumerate(row)).rstrip())
    if silent:
        print(f"measured in voxels: {silent.name} states no voxel size (--spacing_um gives it)")
    for name, count in empty.items():
        if count:
            print(f"{count} of {len(files[name])} {name} label images hold no cells")
    print(f"written: {out / 'metrics.json'}, {out / 'distributions.png'}")
    return result


def spread(count: int, num: int) -> list[int]:
    """At most `num` of the indices 0..count-1, evenly spread, since neighbouring files are often alike."""
    num = min(num, count)
    return [round(i * (count - 1) / max(num - 1, 1)) for i in range(num)]


def _table(statistics: dict) -> list[list[str]]:
    """The numbers as text: a row per statistic, the first of heads."""
    rows = [["statistic", "real [quartiles]", "synthetic [quartiles]", "Wasserstein, real sd", "KS",
             "real-real Wasserstein", "real-real KS"]]  # fmt: skip
    for name, row in statistics.items():
        title = f"{TITLES[name]}, {row['unit']}" if row["unit"] else TITLES[name]
        summaries = [_summary(row[which]) for which in ("real", "synthetic")]
        keys = ("wasserstein", "ks", "real_wasserstein", "real_ks")
        rows.append([title, *summaries, *("-" if row[key] is None else f"{row[key]:.3f}" for key in keys)])
    return rows


def _summary(row: dict) -> str:
    if row["median"] is None:
        return "-"
    low, high = row["quartiles"]
    return f"{_number(row['median'])} [{_number(low)}, {_number(high)}]"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
