"""Parameters of `unet.UNet` under the names and axis orders of the published PyTorch checkpoints.

There `STAGE.INDEX.weight` and `STAGE.INDEX.bias`, kernels are [out, in, *k]; here `STAGE/KIND_INDEX/NAME`, kernels are
[*k, in, out]. A norm with parameters (`group`) is written as PyTorch's own group norm in that place would be.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from jaxsynth.errors import InputError

WRONG = "not the published diffusion denoiser"


@dataclasses.dataclass(frozen=True)
class Network:
    """What the shapes of a checkpoint tell: number of space axes, channels, and the norm where it has parameters."""

    rank: int
    features: int
    in_channels: int
    norm: str | None


def describe(state: Mapping[str, np.ndarray]) -> Network:
    """Which network a state dict (names without prefix) belongs to.

    Raises:
      InputError: none of those that `unet.UNet` can be.
    """
    first = state.get("c1.0.weight")
    if first is None or first.ndim not in (4, 5) or first.shape[0] < 1:
        came = "is missing" if first is None else f"has shape {first.shape}"
        raise InputError(f"{WRONG}: c1.0.weight {came}, expected [features / 2, channels, *kernel]")
    if any(name.endswith("running_mean") for name in state):
        raise InputError("the network was trained with batch norm, which is not supported: expected instance or none")
    if first.shape[1] not in (1, 2):
        raise InputError(f"{WRONG}: it has {first.shape[1]} input channels, expected 1 or 2")
    norm = "group" if getattr(state.get("c1.2.weight"), "ndim", 0) == 1 else None
    return Network(first.ndim - 2, 2 * first.shape[0], first.shape[1], norm)


def to_params(state: Mapping[str, np.ndarray], like: Mapping) -> dict:
    """The parameters of a state dict.

    Args:
      state: names without prefix -> arrays of any float type.
      like: the parameters of the network, or their shapes.

    Returns:
      The tree of `like`, NumPy float32.

    Raises:
      InputError: an entry is missing, is not expected, has another shape or holds NaN or infinity.
    """
    places = {f"{stage}.{name}": (stage, layer, leaf) for stage, name, layer, leaf in _leaves(like)}
    for problem, names in (
        ("lacks", places.keys() - state.keys()),
        ("has an unexpected", state.keys() - places.keys()),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(f"{WRONG}: {problem} {min(names)}{more}")
    params = {}
    for name, (stage, layer, leaf) in places.items():
        array, expected = np.asarray(state[name]), like[stage][layer][leaf].shape
        if leaf == "kernel":
            expected = (*expected[-1:-3:-1], *expected[:-2])
        if array.dtype.kind != "f" or array.shape != expected:
            raise InputError(f"{WRONG}: {name} is {array.dtype} {array.shape}, expected float32 {expected}")
        if not np.isfinite(array).all():
            raise InputError(f"{name} holds NaN or infinite values")
        if leaf == "kernel":
            array = np.moveaxis(array, (0, 1), (-1, -2))
        params.setdefault(stage, {}).setdefault(layer, {})[leaf] = np.array(array, np.float32, order="C")
    return params


def from_params(params: Mapping) -> dict[str, np.ndarray]:
    """The inverse of `to_params`: a state dict, names without prefix, sorted."""
    state = {}
    for stage, name, layer, leaf in sorted(_leaves(params)):
        array = np.asarray(params[stage][layer][leaf], np.float32)
        if leaf == "kernel":
            array = np.moveaxis(array, (-1, -2), (0, 1))
        state[f"{stage}.{name}"] = np.ascontiguousarray(array)
    return state


def _leaves(params: Mapping) -> Iterator[tuple[str, str, str, str]]:
    """(stage, INDEX.weight or INDEX.bias, layer, name) of every parameter."""
    for stage, layers in params.items():
        for layer, arrays in layers.items():
            index = layer.split("_")[1]
            for leaf in arrays:
                yield stage, f"{index}.{'bias' if leaf == 'bias' else 'weight'}", layer, leaf
