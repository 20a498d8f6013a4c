"""The benchmark's peer: the PyTorch twins of tests/peers at the same work as this package.

Eager, and compiled by torch.compile; channels last, on a GPU in bfloat16, else in float32. On a GPU cuDNN tries its
algorithms and keeps the fastest (torch.backends.cudnn.benchmark), as XLA does.
"""

import importlib
import importlib.util
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from jaxsynth import bench_device
from jaxsynth.errors import InputError

PEERS = ("torch",)
KEYS = ("peer_compiled_median_s", "ratio_compiled", "peer_note")
TWINS = Path(__file__).parent.parent / "tests" / "peers" / "__init__.py"


def check(peer: str | None) -> None:
    """Raises InputError for an unknown peer, or where it cannot be run."""
    if peer is None:
        return
    if peer not in PEERS:
        raise InputError(f"--peer: expected {', '.join(PEERS)}; got {peer!r}")
    if not TWINS.is_file():
        raise InputError(
            f"--peer torch: {TWINS} is not there; the PyTorch twins come with a checkout of the repository"
        )
    if importlib.util.find_spec("torch") is None:
        raise InputError("--peer torch: PyTorch is not installed; pip install 'jaxsynth[peers]'")


def load(name: str = "unet"):
    """A module of PyTorch twins, which are no part of the package; raises InputError as `check`."""
    check("torch")
    import torch

    if bench_device.on_gpu() and not torch.cuda.is_available():
        raise InputError("--peer torch: JAX runs on a GPU here but this PyTorch cannot, which compares nothing")
    torch.set_num_threads(bench_device.num_cores())
    torch.backends.cudnn.benchmark = bench_device.on_gpu()
    package = "jaxsynth_peers"
    if package not in sys.modules:
        spec = importlib.util.spec_from_file_location(package, TWINS, submodule_search_locations=[str(TWINS.parent)])
        sys.modules[package] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package])
    return importlib.import_module(f"{package}.{name}")


def forward(module, shape: tuple[int, ...], features: int, compiler: str | None = None) -> tuple[Callable, object]:
    """The published network as forward(x, index), which waits for its result, and an input [1, 2, *shape].

    Args:
      compiler: backend of torch.compile; None: eager.
    """
    import torch

    net, place, layout = _placed(module.TorchUNet(len(shape), 2, features).eval())
    x = layout(torch.randn(1, 2, *shape, device=place))
    net = torch.compile(net, backend=compiler) if compiler else net

    @torch.inference_mode()
    def run(x, index: int):
        with torch.autocast(place.type, torch.bfloat16, enabled=bench_device.on_gpu()):
            y = net(x, torch.full((1,), index, device=place)).float()
        if bench_device.on_gpu():
            torch.cuda.synchronize()
        return y

    return run, x


def training(
    module,
    shape: tuple[int, ...],
    schedule,
    *,
    batch: int = 1,
    features: int = 16,
    norm: str = "instance",
    noise_channel: bool = True,
    compiler: str | None = None,
) -> Callable[[], float]:
    """A step of training the twin as `tasks.ddpm` trains; it returns the loss, the mean squared error of the predicted
    noise. RAdam 1e-3, the gradient clipped to norm 1, a moving average of the parameters. Arguments as in `forward`."""
    import torch

    net, place, layout = _placed(module.TorchUNet(len(shape), 1 + noise_channel, features, norm=norm))
    x0 = layout(torch.rand(batch, 1, *shape, device=place) * 2 - 1)
    alphas_bar = torch.tensor(schedule.alphas_bar, dtype=torch.float32, device=place)
    alphas_bar = alphas_bar.reshape(-1, *[1] * (x0.ndim - 1))
    parameters = list(net.parameters())
    average = [parameter.detach().clone() for parameter in parameters]
    optimiser = torch.optim.RAdam(parameters, lr=1e-3)
    net = torch.compile(net, backend=compiler) if compiler else net

    def run() -> float:
        t = torch.randint(len(alphas_bar), (batch,), device=place)
        noise = torch.randn_like(x0)
        xt = alphas_bar[t].sqrt() * x0 + (1 - alphas_bar[t]).sqrt() * noise
        x = torch.cat([xt, torch.randn_like(x0)], dim=1) if noise_channel else xt
        with torch.autocast(place.type, torch.bfloat16, enabled=bench_device.on_gpu()):
            predicted = net(layout(x), t)
        loss = torch.nn.functional.mse_loss(predicted.float(), noise)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        torch._foreach_lerp_(average, [parameter.detach() for parameter in parameters], 1e-3)
        return loss.item()  # which waits

    return run


def gan_generation(module, shape: tuple[int, ...], features: int, compiler: str | None = None) -> Callable[[], None]:
    """The published generator on a mask and its position map; waits for the image. Arguments as in `forward`."""
    import torch

    net, place, layout = _placed(module.TorchGenerator(len(shape), features).eval())
    x = layout(torch.rand(1, 2, *shape, device=place))
    net = torch.compile(net, backend=compiler) if compiler else net

    @torch.inference_mode()
    def run() -> None:
        with torch.autocast(place.type, torch.bfloat16, enabled=bench_device.on_gpu()):
            net(x)
        if bench_device.on_gpu():
            torch.cuda.synchronize()

    return run


def gan_training(
    module,
    shape: tuple[int, ...],
    *,
    batch: int = 1,
    features: int = 16,
    critic_features: int = 64,
    compiler: str | None = None,
) -> Callable[[], float]:
    """A step of training the twins as `tasks.gan` trains, without augmentations; it returns the critic's loss. First
    the generator, then the critic on the same images. Arguments as in `forward`."""
    import torch
    from torch.nn import functional

    generator, place, layout = _placed(module.TorchGenerator(len(shape), features))
    critic = _placed(module.TorchCritic(len(shape), critic_features))[0]
    given, real, position = (layout(torch.rand(batch, n, *shape, device=place)) for n in (2, 1, 1))
    optimisers = [torch.optim.RAdam(net.parameters(), lr=1e-3) for net in (generator, critic)]
    average = [parameter.detach().clone() for parameter in generator.parameters()]
    draw, judge = (torch.compile(net, backend=compiler) if compiler else net for net in (generator, critic))

    def against(logits, real: float):
        logits = logits.float()
        return functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, real))

    def run() -> float:
        with torch.autocast(place.type, torch.bfloat16, enabled=bench_device.on_gpu()):
            fake = draw(given)
            same = draw(layout(torch.cat([real, position], 1)))
            critic.requires_grad_(False)
            own = against(judge(layout(torch.cat([fake, given[:, 1:]], 1))), 1.0)
        loss = own + functional.l1_loss(same.float(), real)
        optimisers[0].zero_grad(set_to_none=True)
        loss.backward()
        optimisers[0].step()
        torch._foreach_lerp_(average, [parameter.detach() for parameter in generator.parameters()], 1e-3)
        critic.requires_grad_(True)
        with torch.autocast(place.type, torch.bfloat16, enabled=bench_device.on_gpu()):
            told_real = against(judge(layout(torch.cat([real, position], 1))), 1.0)
            told_fake = against(judge(layout(torch.cat([fake.detach(), given[:, 1:]], 1))), 0.0)
        loss = (told_real + told_fake) / 2
        optimisers[1].zero_grad(set_to_none=True)
        loss.backward()
        optimisers[1].step()
        return loss.item()  # which waits

    return run


def beside(ours: Callable, make: Callable, what: str, rounds: int, compiler: str) -> tuple[list[float], dict]:
    """Times `ours`, the eager and the compiled peer in turns.

    Args:
      make: make(None) -> the eager peer's run, make(compiler) -> the compiled one's.

    Returns:
      Seconds of every run of ours, and the peer's part of the row.
    """
    eager = make(None)
    eager()
    compiled, note = attempt(lambda: make(compiler))
    sides = (ours, eager, compiled) if compiled else (ours, eager)
    spent, peer_spent, *rest = bench_device.turns(rounds, *((run, 1) for run in sides))
    row = named(peer_spent, 1, what) | {"peer_note": note}
    return spent, row | {"peer_compiled_median_s": statistics.median(rest[0]) if rest else None}


def attempt(make: Callable[[], Callable]) -> tuple[Callable | None, str | None]:
    """What `make` returns, run twice to be warm, and None; or None and why that cannot be."""
    try:
        run = make()
        run()
        run()
    except Exception as error:  # whatever a compiler on this machine may raise: the rest is measured all the same
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return None, f"torch.compile failed: {reason}"
    return run, None


def named(spent: list[float], factor: int, what: str) -> dict:
    """Keys `peer` and `peer_median_s` of the eager twin, each run multiplied by `factor`."""
    import torch

    peer = f"PyTorch {torch.__version__} twin, eager, {what}"
    return {"peer": peer, "peer_median_s": factor * statistics.median(spent)}


def _placed(net):
    """The network on its device, the device, and a function that lays out an input alike: channels last, which is the
    faster in 2D and 3D, forward and back, on a CPU too."""
    import torch

    place = torch.device("cuda" if bench_device.on_gpu() else "cpu")
    rank = next(parameter for parameter in net.parameters() if parameter.ndim > 1).ndim - 2
    kind = torch.channels_last if rank == 2 else torch.channels_last_3d
    return net.to(place).to(memory_format=kind), place, lambda x: x.contiguous(memory_format=kind)
