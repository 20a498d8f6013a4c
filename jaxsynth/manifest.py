"""`manifest.json`: what makes every file of a data set again."""

import json
import os
import platform
from importlib import metadata
from pathlib import Path

import jaxsynth
from jaxsynth.errors import InputError

NAME = "manifest.json"


def open_manifest(out: Path, command: str, settings: dict) -> dict:
    """The manifest of the data set in `out`, begun earlier or now; nothing is written yet.

    Args:
      command: which command makes the data set.
      settings: all that its files depend on; JSON-able.

    Returns:
      {"command", "settings", "versions", "files": {name: {...}}}; `files` are those made earlier.

    Raises:
      InputError: the folder holds files made by another command or with other settings, or no folder.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file, expected a folder")
    settings = json.loads(json.dumps(settings))
    files = {}
    if (out / NAME).is_file():
        try:
            earlier = json.loads((out / NAME).read_text())
            files, old, made_by = earlier["files"], earlier["settings"], earlier["command"]
        except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise InputError(f"{out / NAME}: not a manifest of jaxsynth; choose another --out") from error
        if made_by != command:
            raise InputError(f"{out}: was made by jaxsynth.{made_by}; choose another --out")
        for name, value in settings.items():
            if old.get(name) != value:
                raise InputError(f"{out}: was made with {name} {old.get(name)}, not {value}; choose another --out")
    versions = {package: metadata.version(package) for package in ("jax", "jaxlib", "flax", "numpy")}
    versions |= {"jaxsynth": jaxsynth.__version__, "python": platform.python_version()}
    return {"command": command, "settings": settings, "versions": versions, "files": files}


def make_folders(out: Path, folders: tuple[str, ...]) -> None:
    """Makes `out` and its `folders`.

    Raises:
      InputError: they cannot be made.
    """
    try:
        for folder in folders:
            (out / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot make the folder: {error.strerror}") from error


def write_json(file: Path, content: dict) -> None:
    """Writes strict JSON, whole or not at all."""
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    os.replace(part, file)
