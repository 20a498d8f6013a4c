"""The cases of the benchmark suite `gan`: a step of training both networks, and a volume generated, beside the PyTorch
twins of tests/peers.

Weights and images are random, which costs no other time than real ones.
"""

import math
import statistics
from pathlib import Path

from jaxsynth import bench_device, bench_peer, bench_train, cli

CONFIG = Path(__file__).parent.parent / "configs" / "gan_nuclei.py"


def step(
    shape: tuple[int, ...],
    *,
    batch: int = 1,
    peer: str | None = None,
    profile: Path | None = None,
    features: int = 16,
    critic_features: int = 64,
    rounds: int = 3,
    compiler: str = "inductor",
) -> dict:
    """A step of configs/gan_nuclei.py on a batch that is on the device: both networks, with the augmentations that the
    twin does without.

    Args:
      peer: `torch`, to train the twins in turns with it.
      profile: folder for a trace of one more step.
      compiler: backend of torch.compile, for the compiled peer.

    Returns:
      The row's shape (batch, *shape), times, peak_bytes, steps_per_s, bench_device.RATES and, with a peer,
      bench_peer.KEYS.
    """
    import jax

    from jaxsynth import keys
    from jaxsynth.tasks import gan

    module = bench_peer.load("gan") if peer else None
    parts, key = gan.build(read_config(features, critic_features)), keys.root(0)
    images = jax.random.uniform(key, (4, batch, *shape, 1))
    images = dict(zip(("image", "image_position", "mask", "position"), images, strict=True))

    def theirs(compiler):
        widths = {"features": features, "critic_features": critic_features}
        return bench_peer.gan_training(module, shape, batch=batch, **widths, compiler=compiler)

    flops = operations(shape, batch, features, critic_features)
    options = {"rounds": rounds, "compiler": compiler, "profile": profile}
    return bench_train.measured(
        gan,
        parts,
        images,
        (batch, *shape),
        flops,
        theirs if peer else None,
        **options,
    )


def operations(shape: tuple[int, ...], batch: int, features: int, critic_features: int) -> float:
    """Of the direct convolutions of a step, two per multiply-add. The generator draws two images, the critic sees two,
    all forth and back; and once more back from the critic's answer on generated ones to these, for the generator."""
    from jaxsynth.nn import gan

    generator = gan.operations(len(shape), features)[2]
    critic = gan.critic_operations(len(shape), critic_features)
    return 2 * (2 * 3 * generator + (2 * 3 + 1) * critic) * batch * math.prod(shape)


def read_config(features: int, critic_features: int):
    """configs/gan_nuclei.py with the published networks at these widths, in bfloat16 where there is a GPU."""
    values = {
        "model.norm": "instance",
        "gan.critic_norm": "instance",
        "gan.residual": False,
        "gan.smooth_doublings": False,
        "gan.critic_gain": 1.0,
        "gan.critic_shift": 0,
        "gan.critic_mask": False,
        "gan.r1": 0.0,
        "model.noise_channel": False,
        "gan.mask": "cells",
        "gan.sigma": 0.0,
        "model.features": features,
        "gan.critic_features": critic_features,
        "model.bfloat16": bench_device.on_gpu(),
    }
    return cli.read_config(str(CONFIG), [f"--config.{name}={value}" for name, value in values.items()])


def generation(
    shape: tuple[int, ...],
    *,
    peer: str | None = None,
    profile: Path | None = None,
    features: int = 16,
    rounds: int = 3,
    compiler: str = "inductor",
) -> dict:
    """An image of a mask and its position map, in one piece on both sides.

    Returns:
      The row's shape, times, peak_bytes, bench_device.RATES and, with a peer, bench_peer.KEYS.
    """
    import jax

    from jaxsynth import keys
    from jaxsynth.nn import gan as networks
    from jaxsynth.tasks import gan

    module = bench_peer.load("gan") if peer else None
    parts, key = gan.build(read_config(features, 4)), keys.root(0)
    params = jax.jit(lambda k: gan.init(parts, k, (1, *(32,) * len(shape), 1)).ema_params)(key)
    inputs = params, key[None], jax.random.uniform(key, (1, *shape, 2))
    program, compile_s = bench_device.compiled(lambda *given: gan.generate(parts, *given), *inputs)
    row = {"shape": shape, "compile_s": compile_s}

    def ours():
        return program(*inputs).block_until_ready()

    ours()
    row["peak_bytes"] = bench_device.peak_bytes(program)
    if peer:
        spent, beside = bench_peer.beside(
            ours,
            lambda compiler: bench_peer.gan_generation(module, shape, features, compiler),
            "forward",
            rounds,
            compiler,
        )
        row |= beside
    else:
        (spent,) = bench_device.turns(rounds, (ours, 1))
    row["median_s"] = statistics.median(spent)
    flops = 2 * networks.operations(len(shape), features)[2] * math.prod(shape)
    row |= bench_device.rates(flops, program, row["median_s"])
    with bench_device.traced(profile):
        ours()
    return row
