"""What `jaxsynth.tune --samplers` shows: the table, the curves and the pictures."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxsynth import figures
from jaxsynth.data import volumes

COLUMNS = {
    "psnr": ("PSNR, dB", 2),
    "ssim": ("SSIM", 3),
    "zncc": ("ZNCC", 3),
    "kld": ("KLD", 4),
    "bhattacharyya": ("BD", 4),
    "frechet": ("Fréchet", 2),
    "spectral_distance_db": ("spectrum, dB", 2),
    "background_noise_sd": ("noise sd", 3),
}
SHOWN = 4  # settings in the picture


def markdown(result: Mapping, judged: Sequence[str]) -> str:
    """The table of samplers.json, with what it was made from; *italic* is beyond the noise of the reference."""
    settings = result["settings"]
    crop = "x".join(map(str, settings["crop"])) + " of " if settings["crop"] else ""
    head = [
        f"{crop}{len(result['images'])} images, t_start {settings['t_start']}, sigma {settings['sigma']:g}, reference "
        f"{settings['reference']} steps of DDPM, seed {settings['seed']}, {settings['device']}. Seconds are per image, "
        "without compiling. *Italic*: worse than the reference by more than 2 standard errors and than its two runs "
        "differ." + (f" Within noise is of all but {unjudged(result)}." if result["unjudged"] else ""),
        "",
        "| sampler | evaluations | s | " + " | ".join(title for title, _ in COLUMNS.values()) + " | within noise |",
        "|---|" + "---:|" * (2 + len(COLUMNS)) + "---|",
    ]

    def line(name, evaluations, seconds, values, within=None, mark=""):
        cells = []
        for key, (_, digits) in COLUMNS.items():
            value = values.get(key)
            text = "" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"
            cells.append(f"*{text}*" if text and key in judged and (within or {}).get(key) is False else text)
        return f"| {name} | {evaluations} | {seconds} | " + " | ".join(cells) + f" | {mark} |"

    lines = [line("real", "", "", {"background_noise_sd": result["real"]["background_noise_sd"]})]
    if "real, other half" in result:
        lines.append(line("real, half to half", "", "", result["real, other half"]))
    lines.append(line("sketch", "", "", result["sketch"]))
    for row in result["rows"]:
        reference = "within" not in row
        best = row["name"] == result["recommended"]
        name = row["name"].replace("_", " ") if reference else row["sampler"]
        mark = "" if reference else "**recommended**" if best else "yes" if row["equal"] else "no"
        seconds = f"{row['seconds']:.3g}"
        lines.append(line(name, row["evaluations"], seconds, row, row.get("within"), mark))
    return "\n".join([*head, *lines]) + "\n"


def unjudged(result: Mapping) -> str:
    """The metrics that could not be judged, in words, and why."""
    names = ", ".join(COLUMNS[name][0].split(",")[0] for name in result["unjudged"])
    return f"{names}, undefined for these images or with one of them left out"


def draw(out: Path, result: Mapping, columns: Mapping[str, np.ndarray], name: str, spacing_um) -> None:
    """samplers.png, quality over evaluations, and samplers_images.png, one image of the best few settings.

    Args:
      out: the folder, with images/.
      result: of samplers.json.
      columns: title -> image [*S], what to show left of the reference.
      name: of the image to show.
    """
    rows = [row for row in result["rows"] if "within" in row]
    reference = [row for row in result["rows"] if "within" not in row]
    counts = sorted({row["evaluations"] for row in rows})
    places = np.arange(len(counts), dtype=float)
    panels = []
    for key, (title, digits) in (COLUMNS | {"seconds": ("seconds per image", 1)}).items():
        lines = {}
        for sampler in dict.fromkeys(row["sampler"] for row in rows):
            found = {row["evaluations"]: row[key] for row in rows if row["sampler"] == sampler}
            lines[sampler] = np.array([found.get(count, np.nan) for count in counts])
        aim = np.mean([row[key] for row in reference])
        log = key in ("kld", "bhattacharyya", "frechet", "seconds")
        log = log and any(np.any(y > 0) for y in lines.values())
        panels.append({"title": f"{title} (reference {aim:.{digits}f})", "x": places, "xlabel": "network evaluations",
                       "ylabel": title, "lines": lines, "log": log, "marks": {"y": aim},
                       "ticks": (places, [str(count) for count in counts])})  # fmt: skip
    figures.curves(out / "samplers.png", [p for p in panels if any(np.isfinite(y).any() for y in p["lines"].values())])

    best = next(
        (row for row in rows if row["name"] == result["recommended"]), min(rows, key=lambda r: r["evaluations"])
    )
    rest = [row for row in rows if row["evaluations"] == best["evaluations"] and row is not best]
    rest.sort(key=lambda row: row["frechet"] if math.isfinite(row["frechet"]) else row["kld"])
    columns = {title: [image] for title, image in columns.items()}
    for row in (reference[0], best, *rest[: SHOWN - 1]):
        title = "reference" if row is reference[0] else f"{row['sampler']}, {row['evaluations']}"
        columns[title] = [volumes.read(out / "images" / row["name"] / f"{name}.tif")]
    aspect = spacing_um[0] / spacing_um[-1] if spacing_um and len(spacing_um) == 3 else 1.0
    figures.overview(out / "samplers_images.png", columns, names={"real": [name]}, aspect=aspect)
