"""Sketches from files, as `sample` and `tune` take them."""

import json
from pathlib import Path

import numpy as np

from jaxsynth import manifest as manifests
from jaxsynth.data import formats, volumes
from jaxsynth.errors import InputError


def check_scale(folder: Path, metadata: dict) -> None:
    """Raises InputError where the manifest beside `folder` says that its sketches are of another normalisation than
    the checkpoint with this metadata."""
    file = folder.parent / manifests.NAME
    try:
        content = json.loads(file.read_text())
        made_for = content.get("intensity") or content["settings"]["intensity"]
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        return
    if made_for is not None and made_for != metadata["intensity"]:
        raise InputError(
            f"{file.parent}: the sketches were drawn for another normalisation than the checkpoint's: "
            "make them again with jaxsynth.simulate --checkpoint"
        )


def read(file: Path, ndim: int, *, mapped: bool = False) -> np.ndarray:
    """A sketch, float32 [*S] in [-1, 1]; `mapped`: as in `formats.read`, then in the file's own float type.

    Raises:
      InputError: it is none, or not of rank `ndim`.
    """
    sketch = volumes.read(file, mapped=mapped)
    if sketch.ndim != ndim:
        raise InputError(f"{file}: the sketch is {sketch.ndim}D, the model {ndim}D")
    check_values(file, sketch)
    return sketch if isinstance(sketch, np.memmap) else sketch.astype(np.float32)


def check_values(file: Path, sketch: np.ndarray) -> None:
    """Raises InputError, naming `file`, where an array [*S] is not float in [-1, 1]."""
    # A comparison that NaN fails.
    if sketch.dtype.kind != "f" or not all(np.all(np.abs(slab) <= 1) for slab in formats.slabs(sketch)):
        raise InputError(f"{file}: sketches must be float in [-1, 1], as jaxsynth.simulate writes them")
