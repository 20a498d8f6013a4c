"""Brings trained weights over from PyTorch, and back; PyTorch itself is not needed.

    python -m jaxsynth.convert CKPT --out DIR
    python -m jaxsynth.convert RUN --out FILE.ckpt

CKPT is a PyTorch Lightning checkpoint (or a bare state dict) of the published diffusion denoiser, of the published
segmentation network or of the published GAN, 2D or 3D; DIR becomes a run that jaxsynth.sample and jaxsynth.tune, or
jaxsynth.segment, take, and jaxsynth.train goes on with.
Such a file does not tell what images the network was trained on: --images FOLDER measures their range, type and voxel
size, in files of several channels those of --channel. A segmentation network needs of these at most the voxel size. No
code that the file may hold is run. Of a GAN, names begin with `generator.` and `discriminator.`; a file without the
latter gives a run whose critic is new, which changes nothing in the images.

RUN is a training run or one of its checkpoints; FILE holds the averaged weights (of a GAN's critic, the last) under the
published names, for torch.load, and all else that jaxsynth needs to take it back.
"""

import argparse
import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

from jaxsynth import cli, published_training
from jaxsynth.errors import InputError

SUFFIXES = (".ckpt", ".pt", ".pth")
WRAPPERS = ("module", "_orig_mod")  # parts of a name that distributed training and compilation add
OURS = "jaxsynth"  # entry of a file written here: the checkpoint's metadata as JSON
NAMES = {"ddpm": "denoiser", "flowseg": "segmentation network", "gan": "GAN"}


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
    masks = ("boundary", "cells", "sketch")
    parser.add_argument("--mask", choices=masks, help="what a GAN draws from, likewise (default: boundary)")
    parser.add_argument("--step", help="which checkpoint of RUN: best, latest or a step (default: best)")
    args = parser.parse_args()
    to_torch = Path(args.source).is_dir()
    for name in ("images", "channel", "dataset", "norm", "schedule", "mask") if to_torch else ("step",):
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
    from jaxsynth.tasks import ddpm, flowseg, gan

    out, source = Path(args.out), Path(args.source)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file, expected a folder")
    if checkpoint.exists(out):
        raise InputError(f"--out {out}: holds a run already; choose another folder")
    content = torch_files.read(source)
    state = published.unify(_state_dict(source, content))
    with _naming(source):
        network = published.describe(state)
    metadata = _metadata(source, content, network, args)
    config = metadata["config"]
    kind = config.get("task")
    if (kind if kind in ("flowseg", "gan") else "ddpm") != network.task:
        raise InputError(f"{source}: its entry {OURS!r} is of task {kind!r}, its weights are of another")
    task = {"ddpm": ddpm, "flowseg": flowseg, "gan": gan}[network.task]
    try:
        parts = task.build(ConfigDict(config))
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{source}: its entry {OURS!r} holds no usable configuration ({error})") from error

    def start(key):
        return task.init(parts, key, (1, *(32,) * network.rank, 1))

    like = jax.eval_shape(start, keys.root(0)).params
    bare = network.task == "gan" and not network.critic_features
    with _naming(source):
        params = published.to_params(state, {"generator": like["generator"]} if bare else like)
    params = jax.device_put(params)
    step = content.get("global_step")
    step = jnp.int32(step if type(step) is int and 0 <= step < 2**31 else 0)
    if network.task == "gan":
        saved = jax.jit(start)(keys.root(0))
        saved = saved.replace(step=step, params=saved.params | params, ema_params=params["generator"])
    else:
        opt_state = jax.jit(parts.optimiser.init)(params)
        saved = TrainState(step=step, params=params, ema_params=params, opt_state=opt_state)
    manager = checkpoint.open_manager(out)
    checkpoint.save(manager, saved, metadata, math.inf)  # any later one is better: how good this is nobody measured
    manager.wait_until_finished()
    manager.close()
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(
        f"{network.rank}D {NAMES[network.task]}, {network.features} features, norm {config['model']['norm']}, "
        f"{count / 1e6:.2f} M parameters, step {step}"
    )
    if bare:
        print("note: no critic in the file; a training that goes on starts with a new one")
    if task is not flowseg and not args.images and OURS not in content:
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
    task = checkpoint.read_metadata(saved)["config"]["task"]
    if task == "gan":
        model = trained.open_trained(saved, tasks=("gan",))
        state = published.from_params({"generator": model.params, "critic": _critic(model)})
    else:
        model = (segmenter.open_segmenter if task == "flowseg" else trained.open_trained)(saved)
        state = {f"network.{name}": array for name, array in published.from_params(model.params).items()}
    # A checkpoint that was renamed tells no step.
    step = int(model.folder.name) if model.folder.name.isdecimal() else 0
    content = {"state_dict": state, "global_step": step, OURS: json.dumps(model.metadata)}
    out.parent.mkdir(parents=True, exist_ok=True)
    torch_files.write(out, content)
    compared = [("norm", model.config.model.norm, ("instance", "none"))]
    if task == "flowseg":
        compared.append(("target", model.parts.target, ("centroid",)))
    elif task == "gan":
        compared.append(("noise_channel", str(model.config.model.noise_channel), ("False",)))
        compared.append(("residual", str(model.parts.net.residual), ("False",)))
        compared.append(("smooth_doublings", str(model.parts.net.smooth), ("False",)))
        compared.append(("critic_mask", str(model.parts.critic_mask), ("False",)))
        compared.append(("sigma", str(model.parts.drawn.sigma), ("0.0",)))
        compared.append(("clouds_vox", str(model.parts.drawn.clouds_vox), ("0.0",)))
    else:
        compared.append(("prediction", model.parts.prediction, ("noise",)))
        compared.append(("normalization", model.intensity.method, ("minmax_shifted",)))
    for what, here, there in compared:
        if here not in there:
            print(f"note: {what} {here}; the published programs know {' and '.join(there)} only")
    print(f"done: {len(state)} tensors in {out}")


def _critic(model):
    """The parameters of a GAN's critic, which are not averaged."""
    import jax

    from jaxsynth import checkpoint, devices, keys
    from jaxsynth.tasks import gan

    shape = (1, *model.config.data.patch, 1)
    state = jax.eval_shape(lambda key: gan.init(model.parts, key, shape), keys.root(0))
    everywhere = devices.replicated(model.mesh)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), state)
    return checkpoint.load(model.folder, like).params["critic"]


def _state_dict(source: Path, content) -> dict:
    """The network's entries of a checkpoint, names without prefix; those of a GAN's two networks keep theirs."""
    import numpy as np

    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not any(isinstance(value, np.ndarray) for value in state.values()):
        raise InputError(f"{source}: holds no state_dict, expected a checkpoint of PyTorch Lightning or a state dict")
    named = {}
    for name, value in state.items():
        if isinstance(value, np.ndarray):
            named[".".join(part for part in str(name).split(".") if part not in WRAPPERS)] = value
    for prefixes in (("network.",), ("generator.", "discriminator.")):
        others = sorted(name for name in named if not name.startswith(prefixes))
        if len(others) == len(named):
            continue
        if others:
            print(f"note: {len(others)} entries outside of the network are left out: {', '.join(others[:3])} ...")
        return {name.removeprefix("network."): value for name, value in named.items() if name.startswith(prefixes)}
    return named


def _metadata(source: Path, content: dict, network, args) -> dict:
    """The metadata of the new checkpoint: the file's own where it was written here, otherwise the published."""
    from jaxsynth.data import intensity as intensities
    from jaxsynth.data import survey, volumes
    from jaxsynth.sim import sketch

    if OURS in content:
        metadata = _ours(source, content[OURS])
        config = metadata["config"]
    else:
        config = published_training.config_of(source, content, network)
        # Levels of sketches as they are drawn without a model.
        unknown = intensities.Intensity("minmax_shifted", "float32", 0.0, 1.0, 0.0, 1.0, sketch.LEVELS)
        intensity = None if network.task == "flowseg" else unknown.to_dict()
        metadata = {"config": config, "intensity": intensity, "spacing_um": None, "num_files": 0, "cells": None}
    if args.norm:
        config["model"]["norm"] = args.norm
    for name, task, section in (("schedule", "ddpm", "diffusion"), ("mask", "gan", "gan")):
        if getattr(args, name):
            if network.task != task:
                raise InputError(f"--{name} does not go with a {NAMES[network.task]}")
            config.setdefault(section, {})[name] = getattr(args, name)
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
        if network.task != "flowseg":  # that one scales every image by itself
            intensity = intensities.fit(lambda: volumes.each(images), data["normalization"])
            seen = survey.survey(images, intensity)
            metadata |= {"intensity": intensity.to_dict(), "cells": seen and dataclasses.asdict(seen)}
    return metadata


def _ours(source: Path, text) -> dict:
    """The metadata that `write_torch` put into a file."""
    try:
        metadata = json.loads(text)
        # What the code that follows changes; the rest is for ddpm.build to judge.
        sections = published_training.CONFIG.keys() - {"task", "seed"}
        whole = all(isinstance(metadata["config"][name], dict) for name in sections)
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
