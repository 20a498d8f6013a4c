"""Where the user's cells are: label images and tables of positions."""

import csv
from pathlib import Path

from jaxsynth.errors import InputError

TABLES = (".csv", ".tsv", ".txt")


def find(path: str) -> list[Path]:
    """Label images or tables at a path; in a folder that holds both, such as one of tracks, the images count."""
    from jaxsynth.data import volumes

    place = Path(path)
    if place.is_dir():
        tables = sorted(file for file in place.iterdir() if file.suffix.lower() in TABLES)
        images = any(file.suffix.lower() in volumes.SUFFIXES for file in place.iterdir())
        return tables if tables and not images else volumes.find_files(path)
    if place.suffix.lower() in TABLES:
        if not place.is_file():
            raise InputError(f"--centres {path}: no such file")
        return [place]
    return volumes.find_files(path)


def centroids(labels, spacing_um):
    """Centroids of the regions, float [M, D], micrometres from the corner."""
    import numpy as np
    from scipy import ndimage

    ids = np.unique(labels)
    ids = ids[ids > 0]
    found = ndimage.center_of_mass(np.broadcast_to(np.float32(1), labels.shape), labels, ids)
    return (np.reshape(found, (-1, labels.ndim)) + 0.5) * np.asarray(spacing_um)


def read_table(file: Path):
    """Positions in a table: float [M, D], micrometres.

    Separated by commas, tabs, semicolons or blanks; lines that begin with # are passed over. Without a header the
    columns are z, y, x or y, x; with one, those named so are taken (also z_um and the like), whatever others there are.

    Raises:
      InputError: names file and line.
    """
    import numpy as np

    lines = [(number, line.strip()) for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1)]
    lines = [(number, line.lstrip("\ufeff")) for number, line in lines if line and not line.startswith("#")]
    rows, columns = [], None
    for number, line in lines:
        mark = next((mark for mark in "\t,;" if mark in line), " ")
        parts = [part.strip() for part in next(csv.reader([line], delimiter=mark, skipinitialspace=True))]
        try:
            row = [float(part) for part in parts]
        except ValueError:
            row = None
        if row is None and not rows and columns is None:
            named = {part.lower().removesuffix("_um").removesuffix(" (um)"): i for i, part in enumerate(parts)}
            columns = [named[axis] for axis in "zyx" if axis in named]
            if "y" not in named or "x" not in named:
                raise InputError(f"{file}: line {number}: expected columns z,y,x or y,x; got {line[:60]!r}")
            continue
        try:
            row = [float(parts[i]) for i in columns] if columns else row
            right = row is not None and len(row) in (2, 3) and len(row) == len(rows[0] if rows else row)
        except (ValueError, IndexError):
            right = False
        if not right or not np.isfinite(row).all():
            raise InputError(f"{file}: line {number}: expected numbers z,y,x or y,x; got {line[:60]!r}")
        rows.append(row)
    return np.asarray(rows, np.float64).reshape(len(rows), -1) if rows else np.zeros((0, 0))


def labels_of(args, file: Path):
    """A label image, its background 0."""
    import numpy as np

    from jaxsynth.data import volumes

    labels = volumes.read_labels(file)
    return np.where(labels == args.background_label, 0, labels)
