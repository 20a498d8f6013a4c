"""Trains segmentation networks on real, synthetic and microscope-model images, and scores them on real ones.

    python -m jaxsynth.experiment --data DATA --out runs/experiment
    python -m jaxsynth.experiment --data DATA --sets gowt1 --seeds 1 --steps 500 --models gowt1=runs/gowt1
    python -m jaxsynth.experiment --data DATA --sets gowt1 --sweep ratio

Each set (DATA/SET/images and masks) is split so that no cell is in both parts, and a diffusion model learns the
training images. Arms: real (training images, their labels), silver (images made from these labels), simulated (images
made from simulated cells), microscope (the same cells, pictured by a model of a microscope), both (real and
simulated); and where it is asked for gan (the same cells, made into images by a GAN that learned the training images
and their labels). Every arm and seed trains for the same number of steps and is scored on the test images.

Each stage is a command of jaxsynth, printed to be copied, its output in OUT/logs. Started again it goes on where it
stopped; a stage whose command has changed is made again, with all that follows from it: what it made is removed.
OUT/table.md and table.json tell the scores, with pictures beside.

Sweeps instead of arms: ratio (synthetic per real image), clustering (of the simulated cells).
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from jaxsynth import cli
from jaxsynth.errors import InputError
from jaxsynth.experiment_plan import (
    ARMS,
    CONFIGS,
    KINDS,
    MORE_ARMS,
    QUICK_IMAGES,
    QUICK_STEPS,
    SWEEPS,
    Stage,
    split_stage,
    stages,
)


def main() -> None:
    """Entry point of the command."""
    cli.run(_main)


def _main() -> None:
    parser = cli.Parser("jaxsynth.experiment", __doc__)
    add = parser.add_argument
    add("--data", required=True, help="folder of the data sets")
    add("--out", help="default: runs/experiment, with --quick runs/experiment-quick")
    add("--sets", type=_names, default=("gowt1", "hela", "dsb2018", "embryo3d"), metavar="SET,...",
        help="of gowt1, hela, dsb2018, embryo3d (default: all)")  # fmt: skip
    add("--arms", type=_names, metavar="ARM,...", help=f"of {', '.join(ARMS)} (default: these), gan")
    add("--seeds", type=int, help="networks per arm, with seeds 0, 1, ...; default 3, with --quick 1")
    add("--steps", type=int, help="of every segmentation network; default: that of configs/flowseg.py")
    add("--models", type=_run, action="append", default=[], metavar="SET=RUN",
        help="a diffusion model that was trained on the training images already; any number of times")  # fmt: skip
    add("--sweep", choices=tuple(SWEEPS), help="in place of the arms")
    add("--only", type=_names, metavar="KIND,...", help=f"only these stages, of {', '.join(KINDS)}")
    add("--quick", action="store_true", help="a few images and steps, to try it out; scores mean nothing")
    args = parser.parse_args()
    check(args)
    experiment(fill_in(args))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _run(text: str) -> tuple[str, str]:
    name, equals, run = text.partition("=")
    if not (name and equals and run):
        raise argparse.ArgumentTypeError(f"expected SET=RUN; got {text!r}")
    return name, run


def fill_in(args):
    """The arguments, with what was left open filled in."""
    args.arms = tuple(SWEEPS[args.sweep].values()) if args.sweep else args.arms or ARMS
    args.seeds = (1 if args.quick else 3) if args.seeds is None else args.seeds
    args.steps = QUICK_STEPS if args.quick and args.steps is None else args.steps
    args.out = args.out or ("runs/experiment-quick" if args.quick else "runs/experiment")
    return args


def check(args) -> None:
    """Raises InputError where an argument makes no sense."""
    from jaxsynth.experiment_sets import SETS

    if args.sweep and args.arms:
        raise InputError("--arms: does not go with --sweep, which has its own")
    given = {"sets": (args.sets, tuple(SETS)), "models": (dict(args.models), tuple(SETS)),
             "arms": (args.arms, ARMS + MORE_ARMS), "only": (args.only, KINDS)}  # fmt: skip
    for flag, (names, known) in given.items():
        wrong = [name for name in names or () if name not in known]
        if wrong:
            raise InputError(f"--{flag}: expected some of {', '.join(known)}; got {wrong[0]!r}")
    for flag in ("seeds", "steps"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            raise InputError(f"--{flag}: expected 1 or more; got {getattr(args, flag)}")
    for name, run in args.models:
        if not Path(run).is_dir():
            raise InputError(f"--models {name}: no such folder: {run}")
    for name in args.sets if not args.only or "split" in args.only else ():
        if not (Path(args.data) / name / "masks").is_dir():
            raise InputError(f"--data {args.data}: expected a folder {name}/ with images/ and masks/")
    if args.out and Path(args.out).exists() and not Path(args.out).is_dir():
        raise InputError(f"--out {args.out}: is a file, expected a folder")


def experiment(args) -> None:
    """All stages of all sets in `args` (see `_main`), then the report."""
    from jaxsynth.experiment_sets import NOTE, SETS

    out = Path(args.out)
    only = set(args.only or KINDS)
    for name in args.sets:
        first = split_stage(name, SETS[name], args)
        tokens = {}
        run([first], name, args, tokens, only)
        note = out / name / NOTE
        if not note.is_file():
            if only == {"report"}:
                continue
            raise InputError(f"{note}: no such file; make it with --only split")
        run(stages(name, SETS[name], args, json.loads(note.read_text())), name, args, tokens, only)
    if "report" in only:
        from jaxsynth import experiment_report

        experiment_report.report(out, args.sets, args.arms, SWEEPS.get(args.sweep), args.sweep)


def run(planned: list[Stage], name: str, args, tokens: dict[str, str], only: set[str]) -> None:
    """Runs those stages that are wanted and have not been finished by the same command on the same inputs.

    Args:
      tokens: name -> what its result depends on; of earlier stages, those planned are added.

    Raises:
      InputError: a stage failed, or one that is not wanted would have to run first.
    """
    out = Path(args.out)
    for stage in planned:
        words = [word.replace(str(CONFIGS), "configs").replace(str(out), "OUT") for word in stage.words]
        token = hashlib.sha256(json.dumps([words, [tokens[need] for need in stage.needs]]).encode()).hexdigest()
        tokens[stage.name] = token
        note = out / "done" / f"{name}-{stage.name}.json"
        before = _read(note)
        begun = before.get("token") == token
        if stage.kind not in only or (begun and before.get("finished")):
            continue
        for need in stage.needs:
            ready = _read(out / "done" / f"{name}-{need}.json")
            if not (ready.get("finished") and ready.get("token") == tokens[need]):
                raise InputError(f"{name} {stage.name} needs {name} {need}, which is missing or was made otherwise: "
                                 "leave --only out, or give the arguments it was made with")  # fmt: skip
        if not before and stage.out.is_dir() and any(stage.out.iterdir()):
            raise InputError(f"{stage.out} is there, but no note in {note.parent} tells of it: move it away")
        if not begun and stage.out.exists():
            print(f"{name} {stage.name}: its command or input has changed, made again", flush=True)
        if not begun:
            shutil.rmtree(stage.out, ignore_errors=True)
        content = {"token": token, "command": " ".join(["python -m", *_command(stage)])}
        _write(note, content | {"finished": False})
        started = time.monotonic()
        if stage.kind == "split":
            _split(name, args)
        else:
            _call(stage, name, out / "logs" / f"{name}-{stage.name}.log")
        seconds = time.monotonic() - started
        _write(note, content | {"finished": True, "seconds": round(seconds, 1)})
        print(f"  {seconds:.0f} s", flush=True)


def _command(stage: Stage) -> list[str]:
    return [f"jaxsynth.{stage.words[0]}", *map(shlex.quote, stage.words[1:])]


def _split(name: str, args) -> None:
    from jaxsynth import experiment_sets

    print(f"\n[{name} split]", flush=True)
    limit = QUICK_IMAGES if args.quick else None
    told = experiment_sets.make(name, Path(args.data), Path(args.out) / name, experiment_sets.SETS[name], limit)
    for part in ("train", "test"):
        print(f"  {part}: {told[part]['images']} images, {told[part]['cells']} cells", flush=True)


def _call(stage: Stage, name: str, log: Path) -> None:
    """Runs one command of jaxsynth, its output appended to the log."""
    print(f"\n[{name} {stage.name}] log: {log}\n$ python -m {' '.join(_command(stage))}", flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    stage.out.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", f"jaxsynth.{stage.words[0]}", *stage.words[1:]]
    with open(log, "a") as file:
        file.write(f"$ python -m {' '.join(_command(stage))}\n")
        file.flush()
        # Ctrl-C reaches the command itself, which saves and exits in its own time; a termination is handed on.
        with subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL) as process:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, lambda *_: process.terminate())
            status = process.wait()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if status in (130, -signal.SIGINT, 143, -signal.SIGTERM):
        print("interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)
    if status:
        last = log.read_text(errors="replace").strip().splitlines()[-1]
        raise InputError(f"{name} {stage.name} failed with status {status}, see {log}: {last}")


def _read(note: Path) -> dict:
    try:
        return json.loads(note.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _write(note: Path, content: dict) -> None:
    note.parent.mkdir(parents=True, exist_ok=True)
    part = note.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(part, note)


if __name__ == "__main__":
    main()
