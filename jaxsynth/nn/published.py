"""Parameters of the networks under the names and axis orders of the published PyTorch checkpoints.

There `STAGE.INDEX.weight` and `STAGE.INDEX.bias`, kernels are [out, in, *k], of transposed convolutions [in, out, *k];
here `STAGE/KIND_INDEX/NAME`, kernels are [*k, in, out]. A norm with parameters (`group`) is written as PyTorch's own
group norm in that place would be.

A GAN is two networks in one: `generator.STAGE.INDEX.weight` is `generator/STAGE/KIND_INDEX/NAME`, and
`discriminator.LAYER.weight` is `critic/LAYER/NAME`.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxsynth.errors import InputError

WRONG = {
    "ddpm": "not the published diffusion denoiser",
    "flowseg": "not the published segmentation network",
    "gan": "not the published GAN",
}  # by the task that the network is for


NETWORKS = {"critic": "discriminator"}  # networks within a GAN that go by another name there


@dataclasses.dataclass(frozen=True)
class Network:
    """What the names and shapes of a checkpoint tell.

    Attributes:
      task: ddpm, flowseg or gan.
      rank: number of space axes.
      features, in_channels: the network's; of a GAN, its generator's.
      norm: where it has parameters, else None.
      critic_features: of a GAN; 0 where there is no critic.
    """

    task: str
    rank: int
    features: int
    in_channels: int
    norm: str | None
    critic_features: int = 0


def unify(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict (names without prefix) as it is, but that of a generator alone as that of a GAN without critic."""
    # Only there c1 is without norm and the resolution doubled by shuffles.
    alone = getattr(state.get("c1.2.weight"), "ndim", 0) > 1 and "u1.3.weight" not in state
    return {f"generator.{name}" if alone else name: array for name, array in state.items()}


def describe(state: Mapping[str, np.ndarray]) -> Network:
    """Which network a state dict that `unify` returned belongs to.

    Raises:
      InputError: none of those that `unet.UNet`, `flownet.FlowNet`, `gan.Generator` and `gan.Critic` can be.
    """
    start = ""
    if any(name.startswith(("generator.", "discriminator.")) for name in state):
        task, start, norm, channels = "gan", "generator.", "c2.1", (2, 3, 4)
    elif "u1.3.weight" in state:  # where the others have a pixel shuffle this one has another convolution
        task, norm, channels = "flowseg", "c2.1", (1,)
    else:
        task, norm, channels = "ddpm", "c1.2", (1, 2)
    first = state.get(f"{start}c1.0.weight")
    if first is None or first.ndim not in (4, 5) or first.shape[0] < 1:
        came = "is missing" if first is None else f"has shape {first.shape}"
        raise InputError(f"{WRONG[task]}: {start}c1.0.weight {came}, expected [features / 2, channels, *kernel]")
    if any(name.endswith("running_mean") for name in state):
        raise InputError("the network was trained with batch norm, which is not supported: expected instance or none")
    if first.shape[1] not in channels:
        expected = " or ".join(map(str, channels))
        raise InputError(f"{WRONG[task]}: it has {first.shape[1]} input channels, expected {expected}")
    norm = "group" if getattr(state.get(f"{start}{norm}.weight"), "ndim", 0) == 1 else None
    critic = state.get("discriminator.conv1.weight")
    critic_features = critic.shape[0] if critic is not None and critic.ndim else 0
    return Network(task, first.ndim - 2, 2 * first.shape[0], first.shape[1], norm, critic_features)


def to_params(state: Mapping[str, np.ndarray], like: Mapping) -> dict:
    """The parameters of a state dict.

    Args:
      state: names without prefix -> arrays of any float type.
      like: the parameters of the network, or their shapes; of a GAN {"generator", "critic"} or one of them.

    Returns:
      The tree of `like`, NumPy float32.

    Raises:
      InputError: an entry is missing, is not expected, has another shape or holds NaN or infinity.
    """
    wrong = WRONG["ddpm" if "t1" in like else "flowseg" if "c1" in like else "gan"]
    places = {name: (path, leaf) for name, path, leaf in _leaves(like)}
    for problem, names in (
        ("lacks", places.keys() - state.keys()),
        ("has an unexpected", state.keys() - places.keys()),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(f"{wrong}: {problem} {min(names)}{more}")
    params = {}
    for name, (path, leaf) in places.items():
        array, expected, kernel = np.asarray(state[name]), leaf.shape, path[-1] == "kernel"
        if kernel:
            expected = (*(expected[axis] for axis in _channel_axes(path)), *expected[:-2])
        if array.dtype.kind != "f" or array.shape != expected:
            raise InputError(f"{wrong}: {name} is {array.dtype} {array.shape}, expected float32 {expected}")
        if not np.isfinite(array).all():
            raise InputError(f"{name} holds NaN or infinite values")
        if kernel:
            array = np.moveaxis(array, (0, 1), _channel_axes(path))
        branch = params
        for part in path[:-1]:
            branch = branch.setdefault(part, {})
        branch[path[-1]] = np.array(array, np.float32, order="C")
    return params


def from_params(params: Mapping) -> dict[str, np.ndarray]:
    """The inverse of `to_params`: a state dict, names without prefix, sorted."""
    state = {}
    for name, path, leaf in _leaves(params):
        array = np.asarray(leaf, np.float32)
        if path[-1] == "kernel":
            array = np.moveaxis(array, _channel_axes(path), (0, 1))
        state[name] = np.ascontiguousarray(array)
    return dict(sorted(state.items()))


def _leaves(params: Mapping, above: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """(published name, path, array) of every parameter."""
    for part, branch in params.items():
        path = (*above, part)
        if isinstance(branch, Mapping):
            yield from _leaves(branch, path)
        else:
            places = (NETWORKS.get(name, name.split("_")[-1]) for name in above)
            yield ".".join((*places, "bias" if part == "bias" else "weight")), path, branch


def _channel_axes(path: tuple[str, ...]) -> tuple[int, int]:
    """Where the first two axes of PyTorch's kernel are in ours."""
    return (-2, -1) if path[-2].startswith("transposed") else (-1, -2)
