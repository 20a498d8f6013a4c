"""What `jaxsynth.tune` tells of t_start and sigma: a table, curves and pictures."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxsynth import figures
from jaxsynth.data import volumes
from jaxsynth.tune_pairs import HALVES, REAL, Images, kept, label

DISTANCES = {"kld": "KLD", "bhattacharyya": "Bhattacharyya distance"}
SCORES = {"psnr": "PSNR, dB", "ssim": "SSIM", "zncc": "ZNCC", "mae": "MAE"}
FLOOR = 1e-6  # distances are drawn from here on


def write(
    out: Path, images: Images, result: dict, means: Mapping[tuple[str, int], dict], enough: float, aspect: float = 1.0
) -> None:
    """Draws tune.png and, where something was denoised, tune_images.png into `out`, and prints table and conclusion.

    Args:
      result: what tune.json holds.
      means: (label, t_start) -> mean scores.
      enough: the KLD that a recommendation needs.
      aspect: in 3D, a plane's distance over a pixel's width.
    """
    best, rows = result["recommended"], _table(result["forward"], means)
    panels = _panels(result["forward"], means, best, enough)
    figures.curves(out / "tune.png", panels, rows)
    files = [out / "tune.json", out / "tune.png"]
    if means:
        _draw_images(out / "tune_images.png", out, images, result["backward"], means, aspect)
        files.append(out / "tune_images.png")
    for row in rows:
        print("  ".join(f"{text:<40}" if i == 0 else f"{text:>7}" for i, text in enumerate(row)).rstrip())
    print(f"written: {', '.join(map(str, files))}")
    if best["enough"]:
        why = f"the least t_start with a KLD of at most {enough:g} ({best['kld']:.3f})"
        why += "; of the sigmas that reach it there "
        why += "the lowest KLD" if best["zncc"] is None else f"the highest ZNCC ({best['zncc']:.3f})"
    else:
        why = f"no t_start reaches a KLD of {enough:g}: the one with the lowest, {best['kld']:.3f}"
    print(why)
    print(f"recommended: --t_start {best['t_start']} --sigma {best['sigma']:g}")


def _forward_lines(forward: Mapping, name: str) -> dict[str, dict[int, float]]:
    """Label -> t_start -> distance `name`."""
    lines = {}
    for row in forward["sketch"]:
        lines.setdefault(label(row["sigma"]), {})[row["t_start"]] = row[name]
    if forward[HALVES]:
        lines[HALVES] = {row["t_start"]: row[name] for row in forward[HALVES]}
    return lines


def _backward_lines(means: Mapping, name: str) -> dict[str, dict[int, float]]:
    """Label -> t_start -> score `name`."""
    lines = {}
    for (which, t), scores in means.items():
        lines.setdefault(which, {})[t] = np.nan if scores[name] is None else scores[name]
    return lines


def _table(forward: Mapping, means: Mapping) -> list[list[str]]:
    """A row per quantity and input, a column per t_start."""
    columns = sorted({row["t_start"] for row in forward["sketch"]} | {t for _, t in means})
    rows = [["t_start", *map(str, columns)]]
    for titles, lines_of, source in ((DISTANCES, _forward_lines, forward), (SCORES, _backward_lines, means)):
        for name, title in titles.items():
            digits = 2 if name == "psnr" else 3
            for which, line in lines_of(source, name).items():
                texts = (f"{line[t]:.{digits}f}" if t in line and np.isfinite(line[t]) else "" for t in columns)
                rows.append([f"{title}: {which}", *texts])
    return rows


def _panels(forward: Mapping, means: Mapping, best: dict, enough: float) -> list[dict]:
    """Of `figures.curves`: the distances and, where something was denoised, the scores."""
    where = f"recommended: t_start {best['t_start']}, sigma {best['sigma']:g}"
    panels = []
    for name, title in DISTANCES.items():
        lines = _forward_lines(forward, name)
        panels.append({
            "title": f"{title}, noised", "x": sorted(next(iter(lines.values()))), "xlabel": f"t_start ({where})",
            "ylabel": "distance from noised real images", "log": True,
            "lines": {which: np.maximum([line[t] for t in sorted(line)], FLOOR) for which, line in lines.items()},
            "marks": {"x": best["t_start"]} | ({"y": enough} if name == "kld" else {}),
        })  # fmt: skip
    for name, title in SCORES.items() if means else ():
        lines = _backward_lines(means, name)
        panels.append({
            "title": f"{title}, denoised", "x": sorted(lines[REAL]), "xlabel": "t_start (0: the input itself)",
            "ylabel": "against the real image", "marks": {"x": best["t_start"]},
            "lines": {which: np.array([line[t] for t in sorted(line)]) for which, line in lines.items()},
        })  # fmt: skip
    return panels


def _draw_images(path: Path, out: Path, images: Images, backward: Mapping, means: Mapping, aspect: float) -> None:
    """The first image, a row per input: the real one, the input, and what became of it from every t_start."""
    inputs, starts = (list(dict.fromkeys(part)) for part in zip(*means, strict=True))
    columns, names = {"real": [images.real[0]] * len(inputs)}, {}
    for t in sorted(starts):
        title = f"t_start {t}" if t else "input"
        columns[title] = [volumes.read(kept(out, which, t)) for which in inputs]
        scores = [backward[which][str(t)][images.names[0]] for which in inputs]
        names[title] = [f"PSNR {row['psnr'] or np.inf:.1f} dB, ZNCC {row['zncc'] or np.nan:.2f}" for row in scores]
    names |= {"real": [images.names[0]] * len(inputs), "input": inputs}
    figures.overview(path, columns, names=names, aspect=aspect)
