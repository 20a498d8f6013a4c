"""Brings trained weights over from PyTorch, and back; PyTorch itself is not needed.

    python -m jaxsynth.convert CKPT --out DIR
    python -m jaxsynth.convert RUN --out FILE.ckpt

CKPT is a PyTorch Lightning checkpoint (or a bare state dict) of the published diffusion denoiser or of the published
segmentation network, 2D or 3D; DIR becomes a run that jaxsynth.sample and jaxsynth.tune, or jaxsynth.segment, take.
Such a file does not tell what images the network was trained on: --images FOLDER measures their range, type and voxel
size, in files of several channels those of --channel. A segmentation network needs of these at most the voxel size. No
code that the file may hold is run.

RUN is a training run or one of its checkpoints; FILE holds the averaged weights under the published names, for
torch.load, and all else that jaxsynth needs to take it back.
"""

import argparse
import contextlib
import copy
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

from jaxsynth import cli
from jaxsynth.errors import InputError

SUFFIXES = (".ckpt", ".pt", ".pth")
WRAPPERS = ("module", "_orig_mod")  # parts of a name that distributed training and compilation add
OURS = "jaxsynth"  # entry of a file written here: the checkpoint's metadata as JSON
PATCHES = {2: (256, 256), 3: (32, 128, 128)}
FLOW_CONFIG = Path(__file__).parent.parent / "configs" / "flowseg.py"
FLOW_PATCHES = {2: (256, 256), 3: (64, 128, 128)}
# How the published denoisers were trained; keys as in configs/common.py.
CONFIG = {
    "task": "ddpm",
    "seed": 0,
    "data": {
        "path": "",
        "channel": -1,
        "dataset": "data/image",
        "normalization": "minmax_shifted",
        "patch": (),
        "batch_size": 1,
    },
    "model": {"features": 16, "norm": "instance", "noise_channel": True, "bfloat16": False, "remat": "auto"},
    "diffusion": {
        "schedule": "cosine",
        "num_timesteps": 1000,
        "beta_min": 1e-4,
        "t_max": 1000,
        "prediction": "noise",
        "weighting": "none",
        "snr_cap": 5.0,
    },
    "optim": {
        "name": "radam",
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
        "accumulate": 1,
        "ema_decay": 0.999,
    },
    "train": {"num_steps": 20_000},
}


def main() -> None:
    """Entry point of the command."""
    cli.run(_main)


def _main() -> None:
    parser = cli.Parser("jaxsynth.convert", __doc__)
    parser.add_argument("source", metavar="CKPT|RUN", help="a PyTorch checkpoint, or the folder of a jaxsynth run")
    parser.add_argument("--out", required=True, help=f"folder of the new run, or the file ({', '.join(SUFFIXES)})")
    parser.add_argument("--images", help="images as the network was trained on: folder, glob or file (CKPT only)")
    parser.add_argument("--channel", type=int, help="channel of the images, for --images and later (CKPT only)")
    parser.add_argument("--dataset", help="data set inside HDF5 files, likewise (default: data/image)")
    parser.add_argument("--norm", help="instance or none, which CKPT does not tell (default: instance)")
    parser.add_argument("--schedule", help="cosine, linear, quadratic or sigmoid, likewise (denoiser only)")
    parser.add_argument("--step", help="which checkpoint of RUN: best, latest or a step (default: best)")
    args = parser.parse_args()
    to_torch = Path(args.source).is_dir()
    for name in ("images", "channel", "dataset", "norm", "schedule") if to_torch else ("step",):
        if getattr(args, name) is not None:
            raise InputError(f"--{name} does not go with {'a run' if to_torch else 'a PyTorch checkpoint'}")
    if args.channel is not None and args.channel < 0:
        raise InputError(f"--channel: expected 0 or more; got {args.channel}")
    (write_torch if to_torch else read_torch)(args)


def read_torch(args: argparse.Namespace) -> None:
    """Makes the run folder args.out of the PyTorch checkpoint args.source.

    Raises:
      InputError: unusable files or arguments; nothing has been written then.
    """
    import jax
    import jax.numpy as jnp
    from ml_collections import ConfigDict

    from jaxsynth import checkpoint, keys
    from jaxsynth.data import torch_files
    from jaxsynth.nn import published
    from jaxsynth.records import TrainState
    from jaxsynth.tasks import ddpm, flowseg

    out, source = Path(args.out), Path(args.source)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file, expected a folder")
    if checkpoint.exists(out):
        raise InputError(f"--out {out}: holds a run already; choose another folder")
    content = torch_files.read(source)
    state = _state_dict(source, content)
    with _naming(source):
        network = published.describe(state)
    metadata = _metadata(source, content, network, args)
    config = metadata["config"]
    if (config.get("task") == "flowseg") != (network.task == "flowseg"):
        raise InputError(f"{source}: its entry {OURS!r} is of task {config.get('task')!r}, its weights are of another")
    task = flowseg if network.task == "flowseg" else ddpm
    try:
        parts = task.build(ConfigDict(config))
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{source}: its entry {OURS!r} holds no usable configuration ({error})") from error
    shape = (1, *(8,) * network.rank, 1)
    like = jax.eval_shape(lambda key: task.init(parts, key, shape).params, keys.root(0))
    with _naming(source):
        params = jax.device_put(published.to_params(state, like))

    step = content.get("global_step")
    step = step if type(step) is int and 0 <= step < 2**31 else 0
    saved = TrainState(
        step=jnp.int32(step), params=params, ema_params=params, opt_state=jax.jit(parts.optimiser.init)(params)
    )
    manager = checkpoint.open_manager(out)
    checkpoint.save(manager, saved, metadata, math.inf)  # any later one is better: how good this is nobody measured
    manager.wait_until_finished()
    manager.close()
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    what = "denoiser" if task is ddpm else "segmentation network"
    print(
        f"{network.rank}D {what}, {network.features} features, norm {config['model']['norm']}, "
        f"{count / 1e6:.2f} M parameters, step {step}"
    )
    if task is ddpm and not args.images and OURS not in content:
        print("note: without --images generated images are float32 in [0, 1]")
    print(f"done: {out}")


def write_torch(args: argparse.Namespace) -> None:
    """Writes the averaged weights of the run args.source to the PyTorch file args.out.

    Raises:
      InputError: no run, or another suffix.
    """
    from jaxsynth import checkpoint, segmenter, trained
    from jaxsynth.data import torch_files
    from jaxsynth.nn import published

    out = Path(args.out)
    if out.suffix not in SUFFIXES or out.is_dir():
        raise InputError(f"--out {out}: expected a file that ends in {', '.join(SUFFIXES)}")
    saved = checkpoint.find(args.source, args.step or "best")
    segments = checkpoint.read_metadata(saved)["config"]["task"] == "flowseg"
    model = (segmenter.open_segmenter if segments else trained.open_trained)(saved)
    state = {f"network.{name}": array for name, array in published.from_params(model.params).items()}
    # A checkpoint that was renamed tells no step.
    step = int(model.folder.name) if model.folder.name.isdecimal() else 0
    content = {"state_dict": state, "global_step": step, OURS: json.dumps(model.metadata)}
    out.parent.mkdir(parents=True, exist_ok=True)
    torch_files.write(out, content)
    compared = [("norm", model.config.model.norm, ("instance", "none"))]
    if segments:
        compared.append(("target", model.parts.target, ("centroid",)))
    else:
        compared.append(("prediction", model.parts.prediction, ("noise",)))
        compared.append(("normalization", model.intensity.method, ("minmax_shifted",)))
    for what, here, there in compared:
        if here not in there:
            print(f"note: {what} {here}; the published programs know {' and '.join(there)} only")
    print(f"done: {len(state)} tensors in {out}")


def _state_dict(source: Path, content) -> dict:
    """The network's entries of a checkpoint, names without prefix."""
    import numpy as np

    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not any(isinstance(value, np.ndarray) for value in state.values()):
        raise InputError(f"{source}: holds no state_dict, expected a checkpoint of PyTorch Lightning or a state dict")
    named = {}
    for name, value in state.items():
        if isinstance(value, np.ndarray):
            named[".".join(part for part in str(name).split(".") if part not in WRAPPERS)] = value
    if any(name.startswith("network.") for name in named):
        others = sorted(name for name in named if not name.startswith("network."))
        if others:
            print(f"note: {len(others)} entries outside of the network are left out: {', '.join(others[:3])} ...")
        named = {name.removeprefix("network."): value for name, value in named.items() if name not in others}
    return named


def _metadata(source: Path, content: dict, network, args) -> dict:
    """The metadata of the new checkpoint: the file's own where it was written here, otherwise the published."""
    from jaxsynth.data import intensity as intensities
    from jaxsynth.data import survey, volumes
    from jaxsynth.sim import sketch

    if OURS in content:
        metadata = _ours(source, content[OURS])
        config = metadata["config"]
    elif network.task == "flowseg":
        config = _flow_config(source, content, network)
        metadata = {"config": config, "intensity": None, "spacing_um": None, "num_files": 0, "cells": None}
    else:
        config = copy.deepcopy(CONFIG)
        config["data"]["patch"] = PATCHES[network.rank]
        config["model"] |= {"features": network.features, "noise_channel": network.in_channels == 2}
        config["model"]["norm"] = network.norm or "instance"
        # Levels of sketches as they are drawn without a model.
        unknown = intensities.Intensity("minmax_shifted", "float32", 0.0, 1.0, 0.0, 1.0, sketch.LEVELS)
        metadata = {"config": config, "intensity": unknown.to_dict(), "spacing_um": None, "num_files": 0, "cells": None}
    if args.norm:
        config["model"]["norm"] = args.norm
    if args.schedule:
        if network.task == "flowseg":
            raise InputError("--schedule does not go with a segmentation network")
        config["diffusion"]["schedule"] = args.schedule
    data = config["data"]
    if args.channel is not None:
        data["channel"] = args.channel
    if args.dataset:
        data["dataset"] = args.dataset
    if args.images:
        channel = data.get("channel", -1)
        images = volumes.open_set(args.images, channel=None if channel < 0 else channel, dataset=data.get("dataset"))
        if images.ndim != network.rank:
            raise InputError(f"--images {args.images}: images are {images.ndim}D, the network is {network.rank}D")
        metadata |= {"spacing_um": images.spacing_um, "num_files": len(images.paths)}
        if network.task == "ddpm":  # the other scales every image by itself
            intensity = intensities.fit(lambda: volumes.each(images), data["normalization"])
            seen = survey.survey(images, intensity)
            metadata |= {"intensity": intensity.to_dict(), "cells": seen and dataclasses.asdict(seen)}
    return metadata


def _flow_config(source: Path, content: dict, network) -> dict:
    """How the published segmentation networks were trained."""
    told = content.get("hyper_parameters")
    told = told if isinstance(told, dict) else {}  # a record of a class of its own is not read
    if told.get("out_activation", "tanh") != "tanh":
        raise InputError(f"{source}: its out_activation is {told['out_activation']!r}, expected 'tanh'")
    config = cli.read_config(str(FLOW_CONFIG), []).to_dict()
    config["data"] |= {"normalization": "percentile", "patch": FLOW_PATCHES[network.rank], "batch_size": 1}
    norm = network.norm or told.get("norm_method", "instance")
    config["model"] |= {"features": network.features, "norm": norm}
    config["seg"] |= {"target": "centroid", "scale": (1.0,) * network.rank, "diameter_vox": 0.0}
    config["optim"] |= {"name": "radam", "learning_rate": 1e-3, "weight_decay": 0.0, "warmup_steps": 0}
    return config


def _ours(source: Path, text) -> dict:
    """The metadata that `write_torch` put into a file."""
    try:
        metadata = json.loads(text)
        # What the code that follows changes; the rest is for ddpm.build to judge.
        whole = all(isinstance(metadata["config"][name], dict) for name in CONFIG if name not in ("task", "seed"))
        whole = whole and {"intensity", "spacing_um", "num_files", "cells"} <= metadata.keys()
    except (TypeError, KeyError, ValueError):
        whole = False
    if not whole:
        raise InputError(f"{source}: its entry {OURS!r} is damaged, expected the metadata of a checkpoint as JSON")
    return metadata


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Puts the file's name before what is wrong with its content."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


if __name__ == "__main__":
    main()
