"""From a folder of images to an annotated synthetic data set, with the defaults of every step.

    python -m jaxsynth.quickstart [FOLDER_OF_IMAGES]

Runs the commands of jaxsynth one after the other and prints each, to be run again with other options. Without a
folder it starts from images of the embedded microscope. Safe to run twice: finished steps are not repeated.
"""

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from jaxsynth import cli
from jaxsynth.errors import InputError

NOTE = "quickstart.json"
NUM_REAL, NUM_SYNTHETIC = 24, 8
LARGEST = {2: (256, 256), 3: (32, 96, 96)}  # synthetic images of the quickstart, voxels: minutes, not hours, on CPU


def main() -> None:
    """Entry point of the command."""
    cli.run(_main)


def _main() -> None:
    parser = cli.Parser("jaxsynth.quickstart", __doc__)
    parser.add_argument("folder", nargs="?", help="your images (default: images of the embedded microscope)")
    parser.add_argument("--out", help="default: runs/quickstart, or beside it where that was made from other images")
    parser.add_argument("--channel", type=int, help="channel of your images where they have several")
    parser.add_argument("--dataset", help="data set inside your HDF5 files (default: data/image)")
    parser.add_argument("--train_steps", type=int, help="default: 600 in 2D, 200 in 3D")
    args = parser.parse_args()
    configs = Path(__file__).parent.parent / "configs" / "quickstart.py"
    if not configs.is_file():
        raise InputError("the quickstart needs the configs/ of a clone of the repository; none lies beside the package")
    # One source of images and one length of training a folder: nothing is continued as something else.
    asked = {"images": str(Path(args.folder).resolve()) if args.folder else "embedded microscope"}
    asked |= {"channel": args.channel, "train_steps": args.train_steps}
    name = Path(asked["images"]).name.replace(" ", "-")
    places = [args.out] if args.out else ["runs/quickstart", f"runs/quickstart-{name}"]
    out = next((Path(place) for place in places if _made_from(Path(place)) in (None, asked)), None)
    if out is None:
        raise InputError(f"{places[-1]} was made otherwise, see {NOTE} in it: remove it or give another --out")
    real = Path(args.folder) if args.folder else out / "real" / "images"
    only = [f"--{name}={value}" for name in ("channel", "dataset") if (value := getattr(args, name)) is not None]

    if not args.folder:
        _step(
            1, "images of the embedded microscope stand in for real ones",
            "simulate", "--recipe", "nuclei", "--num", NUM_REAL, "--seed", 1, "--render", "--out", out / "real",
        )  # fmt: skip
    shape = _shape(real, args)
    out.mkdir(parents=True, exist_ok=True)
    (out / NOTE).write_text(json.dumps(asked))
    _step(
        2, "a diffusion model learns what the images look like; it never sees a label",
        "train", "--config", configs, "--workdir", out / "model", f"--config.data.path={real}",
        *(word.replace("--", "--config.data.", 1) for word in only),
        *(["--config.data.batch_size=1"] if len(shape) == 3 else []),
        f"--config.train.num_steps={args.train_steps or (200 if len(shape) == 3 else 600)}",
    )  # fmt: skip
    _step(
        3, "new cells are simulated, sketched, noised and denoised into images",
        "sample", "--checkpoint", out / "model", "--recipe", "nuclei", "--num", NUM_SYNTHETIC,
        "--shape", ",".join(map(str, shape)), "--out", out / "dataset",
    )  # fmt: skip
    _step(
        4, "real and synthetic images are compared",
        "evaluate", "--real", real, *only, "--synthetic", out / "dataset", "--out", out,
    )  # fmt: skip
    print(
        f"\nLook at {out / 'overview.png'} (real | labels | sketch | synthetic) and {out / 'evaluation.png'}.\n"
        f"The annotated data set is {out / 'dataset'}: images/ and labels/ have equal names.\n"
        "Next: bash launch/quickstart.sh FOLDER_OF_YOUR_IMAGES, or the steps above with other options;\n"
        "for images worth publishing train longer: python -m jaxsynth.train --config configs/ddpm.py ... on a GPU."
    )


def _made_from(out: Path) -> dict | None:
    """What the quickstart that trained in this folder was asked for, or None where none has got so far."""
    return json.loads((out / NOTE).read_text()) if (out / NOTE).is_file() and (out / "model").is_dir() else None


def _shape(real: Path, args) -> tuple[int, ...]:
    """The size of the synthetic images: the first real one's, at most LARGEST."""
    from jaxsynth.data import volumes

    first = volumes.read(volumes.find_files(real)[0], channel=args.channel, dataset=args.dataset).shape
    return tuple(min(size, most) for size, most in zip(first, LARGEST[len(first)], strict=True))


def _step(number: int, what: str, command: str, *args) -> None:
    """Runs one command of jaxsynth; its error line and status become this command's."""
    words = ["-m", f"jaxsynth.{command}", *map(str, args)]
    print(f"\n[{number}/4] {what}\n$ python {shlex.join(words)}", flush=True)
    # Ctrl-C reaches the command itself, which saves and exits in its own time; a termination is handed on.
    with subprocess.Popen([sys.executable, *words]) as process:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        status = process.wait()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if status:
        sys.exit(status if status > 0 else 128 - status)


if __name__ == "__main__":
    main()
