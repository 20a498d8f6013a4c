"""How the published networks were trained, which their checkpoints do not tell: configurations for `convert`."""

import copy
from pathlib import Path

from jaxsynth import cli
from jaxsynth.errors import InputError

PATCHES = {2: (256, 256), 3: (32, 128, 128)}
FLOW_CONFIG = Path(__file__).parent.parent / "configs" / "flowseg.py"
GAN_CONFIG = FLOW_CONFIG.parent / "gan_membranes.py"
LARGER_PATCHES = {2: (256, 256), 3: (64, 128, 128)}  # of these two
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


def config_of(source: Path, content: dict, network) -> dict:
    """The configuration, keys as in configs/common.py, of a published checkpoint.

    Args:
      source: its file, for messages.
      content: the file's.
      network: the `nn.published.Network` that it holds.

    Raises:
      InputError: the file tells of another network.
    """
    if network.task != "ddpm":
        return _from_file(source, content, network)
    config = copy.deepcopy(CONFIG)
    config["data"]["patch"] = PATCHES[network.rank]
    config["model"] |= {"features": network.features, "noise_channel": network.in_channels == 2}
    config["model"]["norm"] = network.norm or "instance"
    return config


def _from_file(source: Path, content: dict, network) -> dict:
    """That of a segmentation network or a GAN: a configuration of ours, with what was different."""
    told = content.get("hyper_parameters")
    told = told if isinstance(told, dict) else {}  # a record of a class of its own is not read
    file, ending, norm = (
        (FLOW_CONFIG, "tanh", "norm_method") if network.task == "flowseg" else (GAN_CONFIG, "sigmoid", "norm")
    )
    if told.get("out_activation", ending) != ending:
        raise InputError(f"{source}: its out_activation is {told['out_activation']!r}, expected {ending!r}")
    config = cli.read_config(str(file), []).to_dict()
    config["data"] |= {"normalization": "percentile", "patch": LARGER_PATCHES[network.rank], "batch_size": 1}
    config["model"] |= {"features": network.features, "norm": network.norm or told.get(norm, "instance")}
    betas = {"beta1": 0.9, "beta2": 0.999}
    config["optim"] |= {"name": "radam", "learning_rate": 1e-3, "weight_decay": 0.0, "warmup_steps": 0} | betas
    if network.task == "flowseg":
        config["seg"] |= {"target": "centroid", "scale": (1.0,) * network.rank, "diameter_vox": 0.0}
        return config
    config["model"]["noise_channel"] = network.in_channels > 2  # only files written here have it
    plain = {"critic_norm": "", "critic_gain": 1.0, "critic_rate": 1.0, "critic_shift": 0, "r1": 0.0, "identity": 1.0}
    plain |= {"residual": False, "smooth_doublings": False}
    plain |= {"critic_mask": False, "sigma": 0.0, "clouds_vox": 16.0 if network.in_channels > 3 else 0.0}
    config["gan"] |= plain
    if network.critic_features:
        config["gan"]["critic_features"] = network.critic_features
    return config
