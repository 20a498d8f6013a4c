"""What the modules of the simulate command share: the folder, its manifest and contact sheet, trained models."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxsynth import manifest as manifests
from jaxsynth.errors import InputError

STREAM = "simulate"
PREVIEW = "preview.png"
SHOWN = 4  # specimens on a contact sheet
TITLES = {"labels": "labels", "labels_true": "true labels", "nuclei": "nuclei", "membrane": "membrane",
          "sketches": "sketch", "sketches_nuclei": "sketch of nuclei", "images": "image"}  # fmt: skip
LABELS = ("labels", "true labels", "nuclei", "seeds")


def metadata(args) -> dict | None:
    """The metadata of --checkpoint. Raises InputError where that is no diffusion model's."""
    if not args.checkpoint:
        return None
    from jaxsynth import checkpoint

    found = checkpoint.read_metadata(Path(args.checkpoint))
    if not found["intensity"]:
        raise InputError(
            f"--checkpoint {args.checkpoint} is of task {found['config']['task']!r}, which makes no images"
        )
    return found


def intensity(metadata: dict | None):
    """The normalisation that a checkpoint was trained with."""
    from jaxsynth.data import intensity

    return intensity.Intensity.from_dict(metadata["intensity"]) if metadata else None


def fingerprint(path) -> str:
    """SHA-256 of a file, for the manifest."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def make(
    args,
    settings: dict,
    names: Sequence[str],
    folders: Sequence[str],
    make: Callable[[Path, str], dict | Callable[[], dict]],
    *,
    what: str,
    intensity=None,
    there: Callable[[Path, str], bool] | None = None,
    preview: Callable[[Path], None] | None = None,
) -> None:
    """Opens --out, makes what is missing in it and says so; refuses a folder that was made with other settings.

    Args:
      settings: what files depend on, beside the seed and the normalisation.
      names: of the files.
      folders: in each of which every name gets a TIFF; for a layout of its own give `there`.
      make: (out, name) -> what the manifest is to tell, or a function that returns it: see `manifest.make_files`.
      what: they are, for the last line.
      there: (out, name) -> whether all files of a name are there.
      preview: (path of the PNG) draws the contact sheet where --preview asks for it.
    """
    out = Path(args.out)
    settings = {"seed": args.seed, **settings, "intensity": intensity.to_dict() if intensity else None}
    manifest = manifests.open_manifest(out, "simulate", settings)
    manifests.make_folders(out, folders)
    worker = args.worker or (1, 1)

    def all_there(name: str) -> bool:
        if there is not None:
            return there(out, name)
        return all((out / folder / f"{name}.tif").is_file() for folder in folders)

    finished = manifests.make_files(
        out, manifest, names, all_there, lambda name: make(out, name),
        planned=lambda name: {"key": [STREAM, name]}, worker=worker,
    )  # fmt: skip
    if not finished:
        print(f"worker {worker[0]} of {worker[1]} is done, others are not yet")
        return
    if args.preview:
        (preview or (lambda path: contact_sheet(path, names, folders)))(out / PREVIEW)
        print(f"look at {out / PREVIEW}")
    print(f"{len(names)} {what} in {out}")


def contact_sheet(path: Path, names: Sequence[str], folders: Sequence[str]) -> None:
    """Draws the first few specimens of a folder, from its files."""
    import numpy as np

    from jaxsynth import figures
    from jaxsynth.data import volumes

    columns, aspect = {}, 1.0
    for folder in sorted(folders, key=lambda folder: list(TITLES).index(folder) if folder in TITLES else 99):
        title = TITLES.get(folder, folder)
        masks = folder in ("membrane", "boundary")
        column = columns.setdefault(title, [])
        for name in names[:SHOWN]:
            file = path.parent / folder / f"{name}.tif"
            volume = volumes.read_labels(file) if title in LABELS else volumes.read(file)
            column.append(volume > 0 if masks else volume)
            spacing = volumes.spacing_um(file)
            if folder == "sketches" and spacing is not None and len(spacing) == 3:
                aspect = spacing[0] / spacing[-1]
    for title, column in columns.items():
        # Of overlapping cells, a stack over a flat sketch, the nearest are shown.
        columns[title] = [
            np.asarray(volume[0] if volume.ndim > drawn.ndim else volume)
            for volume, drawn in zip(column, columns["sketch"], strict=True)
        ]
    figures.specimens(path, columns, names=list(names[:SHOWN]), aspect=aspect, labels=LABELS)
