"""Parameters of `unet.UNet` and `flownet.FlowNet` under the names and axis orders of the published PyTorch checkpoints.

There `STAGE.INDEX.weight` and `STAGE.INDEX.bias`, kernels are [out, in, *k], of transposed convolutions [in, out, *k];
here `STAGE/KIND_INDEX/NAME`, kernels are [*k, in, out]. A norm with parameters (`group`) is written as PyTorch's own
group norm in that place would be.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from jaxsynth.errors import InputError

WRONG = {
    "ddpm": "not the published diffusion denoiser",
    "flowseg": "not the published segmentation network",
}  # by the task that the network is for


@dataclasses.dataclass(frozen=True)
class Network:
    """What the names and shapes of a checkpoint tell.

    Attributes:
      task: ddpm or flowseg.
      rank: number of space axes.
      features, in_channels: the network's.
      norm: where it has parameters, else None.
    """

    task: str
    rank: int
    features: int
    in_channels: int
    norm: str | None


def describe(state: Mapping[str, np.ndarray]) -> Network:
    """Which network a state dict (names without prefix) belongs to.

    Raises:
      InputError: none of those that `unet.UNet` and `flownet.FlowNet` can be.
    """
    # Where the one has a pixel shuffle the other has another convolution.
    task, norm, channels = ("flowseg", "c2.1", (1,)) if "u1.3.weight" in state else ("ddpm", "c1.2", (1, 2))
    first = state.get("c1.0.weight")
    if first is None or first.ndim not in (4, 5) or first.shape[0] < 1:
        came = "is missing" if first is None else f"has shape {first.shape}"
        raise InputError(f"{WRONG[task]}: c1.0.weight {came}, expected [features / 2, channels, *kernel]")
    if any(name.endswith("running_mean") for name in state):
        raise InputError("the network was trained with batch norm, which is not supported: expected instance or none")
    if first.shape[1] not in channels:
        expected = " or ".join(map(str, channels))
        raise InputError(f"{WRONG[task]}: it has {first.shape[1]} input channels, expected {expected}")
    norm = "group" if getattr(state.get(f"{norm}.weight"), "ndim", 0) == 1 else None
    return Network(task, first.ndim - 2, 2 * first.shape[0], first.shape[1], norm)


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
    wrong = WRONG["ddpm" if "t1" in like else "flowseg"]
    places = {f"{stage}.{name}": (stage, layer, leaf) for stage, name, layer, leaf in _leaves(like)}
    for problem, names in (
        ("lacks", places.keys() - state.keys()),
        ("has an unexpected", state.keys() - places.keys()),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(f"{wrong}: {problem} {min(names)}{more}")
    params = {}
    for name, (stage, layer, leaf) in places.items():
        array, expected = np.asarray(state[name]), like[stage][layer][leaf].shape
        if leaf == "kernel":
            expected = (*(expected[axis] for axis in _channel_axes(layer)), *expected[:-2])
        if array.dtype.kind != "f" or array.shape != expected:
            raise InputError(f"{wrong}: {name} is {array.dtype} {array.shape}, expected float32 {expected}")
        if not np.isfinite(array).all():
            raise InputError(f"{name} holds NaN or infinite values")
        if leaf == "kernel":
            array = np.moveaxis(array, (0, 1), _channel_axes(layer))
        params.setdefault(stage, {}).setdefault(layer, {})[leaf] = np.array(array, np.float32, order="C")
    return params


def from_params(params: Mapping) -> dict[str, np.ndarray]:
    """The inverse of `to_params`: a state dict, names without prefix, sorted."""
    state = {}
    for stage, name, layer, leaf in sorted(_leaves(params)):
        array = np.asarray(params[stage][layer][leaf], np.float32)
        if leaf == "kernel":
            array = np.moveaxis(array, _channel_axes(layer), (0, 1))
        state[f"{stage}.{name}"] = np.ascontiguousarray(array)
    return state


def _leaves(params: Mapping) -> Iterator[tuple[str, str, str, str]]:
    """(stage, INDEX.weight or INDEX.bias, layer, name) of every parameter."""
    for stage, layers in params.items():
        for layer, arrays in layers.items():
            index = layer.split("_")[1]
            for leaf in arrays:
                yield stage, f"{index}.{'bias' if leaf == 'bias' else 'weight'}", layer, leaf


def _channel_axes(layer: str) -> tuple[int, int]:
    """Where the first two axes of PyTorch's kernel are in ours."""
    return (-2, -1) if layer.startswith("transposed") else (-1, -2)
