"""What a training run starts from: its configuration checked, its images opened, its latest checkpoint compared."""

import importlib
import json
from pathlib import Path

from jaxsynth import checkpoint
from jaxsynth.data import volumes
from jaxsynth.errors import InputError

PATCHES = {2: (128, 128), 3: (32, 64, 64)}  # where data.patch is left open
EVENTS = ("log", "val", "checkpoint", "preview")
# What a run may not change when it is continued, and of that what it may.
FIXED = (
    "task",
    "seed",
    "model",
    "diffusion",
    "distill",
    "seg",
    "gan",
    "data.normalization",
    "data.patch",
    "data.channel",
    "optim.name",
    "optim.ema_decay",
)
FREE = {
    "model": {"remat", "bfloat16"},
    "seg": {"labels", "val_labels", "dataset", "capacity", "checkpoint", "reuse"},
    "gan": {"labels", "image_labels", "val_image_labels", "dataset", "reuse"},
}
# Keys that runs of earlier versions lack, and how those were trained.
EARLIER = {
    "diffusion": {"prediction": "noise", "weighting": "none", "snr_cap": 5.0},
    "gan": {"smooth_doublings": False},
}


def find_task(name: str):
    """The module of a task.

    Raises:
      InputError: there is none of that name.
    """
    there = sorted(p.stem for p in (Path(__file__).parent / "tasks").glob("[!_]*.py"))
    if name not in there:
        raise InputError(f"unknown task {name!r}: expected one of {', '.join(there)}")
    return importlib.import_module(f"jaxsynth.tasks.{name}")


def find_source(task):
    """The module that the task's batches come from, see `train_source`."""
    return importlib.import_module(f"jaxsynth.{getattr(task, 'SOURCE', 'train_source')}")


def check_numbers(config) -> None:
    """Raises InputError for numbers that no training can run with."""
    least = {"train.num_steps": 1, "train.keep_last": 1, "optim.learning_rate": 0, "optim.warmup_steps": 0}
    least |= {f"train.{what}_every": 0 for what in EVENTS} | {"data.device_limit_gib": 0, "optim.clip_norm": 0}
    for name, limit in least.items():
        section, key = name.split(".")
        if not config[section][key] >= limit:
            raise InputError(f"{name} must be at least {limit}, got {config[section][key]}")
    if not 0 <= config.optim.ema_decay < 1:
        raise InputError(f"optim.ema_decay must lie in [0, 1), got {config.optim.ema_decay}")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"seed must lie in 0..{2**32 - 1}, got {config.seed}")


def open_images(config):
    """The training set and the held-out set (None where a single image leaves none), both checked.

    Raises:
      InputError: images that cannot be used, naming the file and the cause.
    """
    data = config.data
    if not data.path:
        raise InputError("no images given: set --config.data.path=FOLDER")
    select = {"channel": None if data.channel < 0 else data.channel, "dataset": data.dataset}

    def files(path: str) -> list[Path]:
        return volumes.find_files(path if Path(path).exists() else [part.strip() for part in path.split(",")])

    if not data.patch:
        data.patch = PATCHES[volumes.read(files(data.path)[0], **select).ndim]
    if len(data.patch) not in PATCHES or any(size < 8 for size in data.patch):
        raise InputError(f"data.patch must have 2 (y, x) or 3 (z, y, x) sizes of 8 or more, got {tuple(data.patch)}")
    if not 0 <= data.val_fraction < 1:
        raise InputError(f"data.val_fraction must lie in [0, 1), got {data.val_fraction}")

    def open_set(path: str):
        return volumes.open_set(
            files(path),
            **select,
            spacing=tuple(data.spacing_um) or None,
            min_shape=tuple(data.patch),
            allow_padding=data.allow_padding,
        )

    whole = open_set(data.path)
    if data.val_path:
        val = open_set(data.val_path)
        if val.dtype != whole.dtype:
            raise InputError(f"data.val_path holds {val.dtype} images, data.path {whole.dtype}")
        return whole, val
    count = len(whole.paths)
    held = min(max(round(data.val_fraction * count), 1 if data.val_fraction else 0), count - 1)
    # The last files: neighbouring frames of a series are nearly the same image, so a block is held out, no mixture.
    val = volumes.subset(whole, range(count - held, count)) if held else None
    return volumes.subset(whole, range(count - held)), val


def saved_metadata(workdir: Path, task: str) -> dict | None:
    """The metadata of the run's latest checkpoint, or None for a new run.

    Raises:
      InputError: the run is of another task.
    """
    if not checkpoint.exists(workdir):
        return None
    saved = checkpoint.read_metadata(workdir, "latest")
    before = saved["config"]["task"]
    if before != task:
        raise InputError(f"{workdir} was trained with task={before}, now {task}: use another --workdir")
    return saved


def check_same(workdir: Path, saved: dict | None, config) -> None:
    """Raises InputError where the run was started with another network, process or normalisation."""
    for name in FIXED if saved else ():
        old, new = saved["config"], config.to_dict()
        for part in name.split("."):
            old, new = old.get(part), new[part]
        if old is None:  # of an earlier version, which had no such part
            continue
        if name in EARLIER:
            old = EARLIER[name] | old
        if isinstance(old, dict):  # what an earlier version did not know is as it was
            known = (old.keys() & new.keys()) - FREE.get(name, set())
            old, new = ({key: value[key] for key in known} for value in (old, new))
        if json.dumps(old, sort_keys=True) != json.dumps(new, sort_keys=True):
            raise InputError(f"{workdir} was trained with {name}={old}, now {new}: restore it or use another --workdir")
