"""`manifest.json`: what makes every file of a data set again.

Several workers can fill one folder: each writes a manifest of its own, `manifest-2-of-4.json`, so that none overwrites
another's, and who opens the folder reads all of them.
"""

import argparse
import json
import os
import platform
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import jaxsynth
from jaxsynth import pipeline
from jaxsynth.errors import InputError

NAME = "manifest.json"
WRITE_S = 2.0  # the manifest is written about this often


def open_manifest(out: Path, command: str, settings: dict, defaults: dict | None = None) -> dict:
    """The manifest of the data set in `out`, begun earlier or now, by one process or many; nothing is written yet.

    Args:
      command: which command makes the data set.
      settings: all that its files depend on; JSON-able. One that no earlier run had, as it concerns files that were
        not asked for then, is added.
      defaults: what settings are that are left out, of these or in what an earlier run wrote.

    Returns:
      {"command", "settings", "versions", "files": {name: {...}}}; `files` are those made earlier.

    Raises:
      InputError: the folder holds files made by another command or with other settings, or no folder.
    """
    _check_folder(out)
    settings, defaults = json.loads(json.dumps([settings, defaults or {}]))
    files, before = {}, {}
    for earlier in _earlier(out):
        if earlier["command"] != command:
            raise InputError(f"{out}: was made by jaxsynth.{earlier['command']}; choose another --out")
        check_settings(out, defaults | earlier["settings"], defaults | settings)
        before |= earlier["settings"]
        _merge(files, earlier["files"])
    versions = {package: metadata.version(package) for package in ("jax", "jaxlib", "flax", "numpy")}
    versions |= {"jaxsynth": jaxsynth.__version__, "python": platform.python_version()}
    return {"command": command, "settings": before | settings, "versions": versions, "files": files}


def open_result(out: Path, name: str, settings: dict, part: str) -> dict:
    """What a command that goes on where it stopped keeps in OUT/name, begun earlier or now; nothing is written yet.

    Args:
      settings: as in `open_manifest`.
      part: the entry that collects what is finished.

    Returns:
      {"settings", part: {...}}, the part empty where nothing has been made yet.

    Raises:
      InputError: the file is none of that kind or of other settings, or `out` is no folder.
    """
    _check_folder(out)
    file, settings = out / name, json.loads(json.dumps(settings))
    before, finished = {}, {}
    if file.is_file():
        try:
            content = json.loads(file.read_text())
            before, finished = dict(content["settings"]), dict(content[part])
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError):
            raise InputError(f"{file}: not a result of this command; choose another --out") from None
        check_settings(out, before, settings)
    return {"settings": before | settings, part: finished}


def check_settings(out: Path, before: dict, settings: dict) -> None:
    """Raises InputError where what lies in `out` was made with another value of a setting; both as JSON gives them."""
    for name, value in settings.items():
        if name in before and before[name] != value:
            told = [textwrap.shorten(str(x), 200, placeholder=" ...") for x in (before[name], value)]
            raise InputError(f"{out}: was made with {name} {told[0]}, not {told[1]}; choose another --out")


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file, expected a folder")


def _earlier(out: Path) -> list[dict]:
    """The manifests in `out`, the common one last."""
    found = []
    for file in [*sorted(out.glob("manifest-*-of-*.json")), out / NAME]:
        if not file.is_file():
            continue
        try:
            content = json.loads(file.read_text())
            sound = all(isinstance(content[key], kind) for key, kind in
                        (("command", str), ("settings", dict), ("files", dict)))  # fmt: skip
        except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
            sound = False
        if not sound:
            raise InputError(f"{file}: not a manifest of jaxsynth; choose another --out")
        found.append(content)
    return found


def _merge(files: dict, more: dict) -> None:
    """Adds what `more` knows of files; of a file that was only planned elsewhere it may know everything."""
    for name, entry in more.items():
        if len(entry) >= len(files.get(name, ())):
            files[name] = entry


def make_folders(out: Path, folders: Sequence[str]) -> None:
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
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    os.replace(part, file)


def worker(text: str) -> tuple[int, int]:
    """The argparse type of --worker: "2/4" is (2, 4)."""
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts) or not 1 <= int(parts[0]) <= int(parts[1]):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 1 to N, such as 2/4; got {text!r}")
    return int(parts[0]), int(parts[1])


def make_files(
    out: Path,
    manifest: dict,
    names: Sequence[str],
    there: Callable[[str], bool],
    make: Callable[[str], dict | Callable[[], dict]],
    *,
    planned: Callable[[str], dict],
    worker: tuple[int, int] = (1, 1),
) -> bool:
    """`fill`, one name after the other.

    Args:
      make: makes the files of a name; returns what the manifest is to tell of them beside what was planned, or a
        function that does the rest of the work and returns that: it is called on another thread, while the next name
        is made.
    """

    def make_each(todo, done):
        def finish(part):
            name, made = part
            done(name, made() if callable(made) else made)

        pipeline.run(todo, lambda name: [(name, make(name))], finish, ahead=1)

    return fill(out, manifest, names, there, make_each, planned=planned, worker=worker)


def fill(
    out: Path,
    manifest: dict,
    names: Sequence[str],
    there: Callable[[str], bool],
    make: Callable[[list[str], Callable[[str, dict], None]], None],
    *,
    planned: Callable[[str], dict],
    worker: tuple[int, int] = (1, 1),
) -> bool:
    """Makes those files of `names` that are missing, with a line of progress, and keeps the manifest up to date.

    The manifest is written every few seconds and at the end, also where that is an error or Ctrl-C. What it does not
    tell of yet when the program is killed is made again.

    Args:
      manifest: of `open_manifest`; changed.
      there: whether all files of a name lie in the folder.
      make: (todo, done) makes the files of all names in `todo`, in any order, and calls done(name, entry) for each, on
        any thread: `entry` is what the manifest is to tell of it beside what was planned.
      planned: what it tells of them before.
      worker: (i, n): every n-th name, from the i-th on, is this process's.

    Returns:
      Whether all of `names` are finished, by whomever; then the manifest tells of all of them.
    """
    part, parts = worker
    own = names[part - 1 :: parts]
    place = out / (NAME if parts == 1 else f"manifest-{part}-of-{parts}.json")
    files = manifest["files"]

    def finished(name: str) -> bool:
        # The manifest tells of a file last: what is only planned was interrupted.
        return name in files and len(files[name]) > len(planned(name)) and there(name)

    todo = [name for name in own if not finished(name)]
    if len(todo) < len(own):
        print(f"{len(own) - len(todo)} of {len(own)} are finished already")
    files = {name: planned(name) for name in own} | (files if parts == 1 else {n: files[n] for n in own if n in files})
    manifest = manifest | {"files": files}
    write_json(place, manifest)
    started = written = time.monotonic()
    count, shown, wait, lock = 0, 0.0, WRITE_S, threading.Lock()

    def done(name: str, entry: dict) -> None:
        nonlocal count, shown, written, wait
        with lock:
            files[name] = planned(name) | entry
            count += 1
            now = time.monotonic()
            if now - written > wait:
                write_json(place, manifest)
                written = time.monotonic()
                wait = max(WRITE_S, 20 * (written - now))  # of many thousand files it takes long
            left = (now - started) / count * (len(todo) - count)
            if now - shown > 2 or count == len(todo):
                shown = now
                print(f"{manifest['command']} {count}/{len(todo)}  {name}  {now - started:.0f} s, {left:.0f} s left",
                      flush=True)  # fmt: skip

    try:
        if todo:
            make(todo, done)
    finally:
        with lock:
            write_json(place, manifest)
    if parts > 1:
        # Each has written its own by now, so the last to come here sees all, and two who do write the same.
        files = {name: planned(name) for name in names}
        for earlier in _earlier(out):
            _merge(files, earlier["files"])
        if not all(map(finished, names)):
            return False
        write_json(out / NAME, manifest | {"files": files})
    return True
