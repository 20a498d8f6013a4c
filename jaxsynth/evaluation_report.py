"""What `jaxsynth.evaluate` shows of images compared: curves with a table, pictures side by side, lines of text."""

import math
from pathlib import Path

import numpy as np

from jaxsynth import compare_images, compare_profiles, figures, figures_profiles
from jaxsynth.compare_images import Ruler
from jaxsynth.compare_labels import spread
from jaxsynth.data import volumes
from jaxsynth.metrics import distribution, profiles

ROWS = 4  # of the overview
DISTANCES = compare_images.DISTANCES | compare_profiles.DISTANCES


def draw(out: Path, folder: Path, real, synthetic, measured: dict, result: dict, ruler: Ruler, spacing) -> None:
    """Writes evaluation.png, profiles.png and overview.png.

    Args:
      out: an existing folder.
      folder: of the synthetic data set.
      real, synthetic: `volumes.VolumeSet`, what is shown of each.
      measured: name -> what both `pool` found; "real" and "synthetic" among them.
      result: what evaluation.json holds.
      spacing: micrometres per voxel or None.
    """
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
    reach = profiles.frequencies(ruler.num_frequencies, spacing)
    figures_profiles.profiles(out / "profiles.png", measured, reach, spacing)

    chosen = spread(len(synthetic.paths), ROWS)
    shown = chosen if "paired" in result else spread(len(real.paths), len(chosen))
    columns = {"real": [volumes.load(real, i) for i in shown]}
    made = [synthetic.paths[i].stem for i in chosen]
    for title, read in (("labels", volumes.read_labels), ("sketches", volumes.read)):
        beside = [folder / title / f"{name}.tif" for name in made]
        if all(file.is_file() for file in beside):
            columns[title.replace("sketches", "sketch")] = [read(file) for file in beside]
    columns["synthetic"] = [volumes.load(synthetic, i) for i in chosen]
    # An unpaired real image shows other cells than its row: each is named where the name changes.
    names = {title: made for title in columns} | {"real": [real.paths[i].stem for i in shown]}
    aspect = spacing[0] / spacing[-1] if spacing and real.ndim == 3 else 1.0
    figures.overview(out / "overview.png", columns, names=names, aspect=aspect)


def _table(result: dict) -> list[list[str]]:
    """The numbers below the curves: distances, then what names a fault."""
    distances, statistics = result["distances_from_real"], result["statistics"]
    last = [name for name in ("sketch", "real, other half") if name in distances]
    names = ["real", *(name for name in distances if name not in last), *last]
    rows = [["", *(name if len(name) <= 16 else f"{name[:15]}…" for name in names)]]
    for key, title in DISTANCES.items():
        values = [distances.get(name, {}).get(key, math.nan) for name in names]
        if key in distances["synthetic"]:
            rows.append([title, *(f"{value:.4f}" if math.isfinite(value) else "" for value in values)])
    for key in ("background_level", "background_noise_sd", "background_noise_correlation", "texture_scale_vox",
                "quantile_0.5", "quantile_0.95", "quantile_0.99"):  # fmt: skip
        values = (statistics.get(name, {}).get(key, math.nan) for name in names)
        rows.append([key.replace("_", " "), *map(_text, values)])
    scores = _scores(result)
    for key in ("psnr", "ssim", "nrmse", "zncc") if scores else ():
        texts = (f"{scores[n]['mean'][key]:.3f} ± {scores[n]['sd'][key]:.3f}" if n in scores else "" for n in names)
        rows.append([f"{key.upper()} of pairs", *texts])
    return rows


def _text(value: float) -> str:
    if not math.isfinite(value):
        return ""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _scores(result: dict) -> dict:
    """The scores of pairs by the set's name; {} where images are not paired."""
    return {"synthetic": result["paired"], **result.get("paired_also", {})} if "paired" in result else {}


def show(result: dict) -> None:
    """Prints the distances, the statistics and the scores of pairs."""
    heads = {"kld": "KLD", "bhattacharyya": "BD", "frechet": "Frechet", "spectral_distance_db": "spectrum dB",
             "profile_distance": "profile x", "depth_profile_distance": "profile z",
             "xz_spectral_distance_db": "xz dB"}  # fmt: skip
    heads = {key: title for key, title in heads.items() if key in result["distances_from_real"]["synthetic"]}
    print(f"{'distance from real':<20} " + " ".join(f"{title:>11}" for title in heads.values()))
    for name, row in result["distances_from_real"].items():
        print(f"{name:<20} " + " ".join(f"{row[key]:11.4f}" for key in heads))
    columns = list(result["statistics"])
    print(f"{'':<28} " + " ".join(f"{name:>10}" for name in columns))
    for name in result["statistics"]["real"]:
        print(f"{name:<28} " + " ".join(f"{result['statistics'][column][name]:10.3f}" for column in columns))
    for title, scores in _scores(result).items():
        print(f"pairs: {title}")
        for name, mean in scores["mean"].items():
            print(f"{name:<28} {mean:10.4f} +- {scores['sd'][name]:.4f}")
