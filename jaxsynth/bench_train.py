"""The cases of the benchmark suite `train`: a step of training beside the PyTorch twin's, and how it splits over
devices.

Weights and images are random, which costs no other time than real ones.
"""

import functools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from jaxsynth import bench_device, bench_peer, cli

CONFIG = Path(__file__).parent.parent / "configs" / "ddpm.py"
DEVICES = 8
# Devices that are not there, and no expensive passes: the program is counted, never run.
FLAGS = (
    f"--xla_force_host_platform_device_count={DEVICES}",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
)


def step(
    shape: tuple[int, ...],
    *,
    batch: int = 1,
    norm: str = "instance",
    peer: str | None = None,
    profile: Path | None = None,
    features: int = 16,
    rounds: int = 3,
    compiler: str = "inductor",
) -> dict:
    """A step of configs/ddpm.py at a constant learning rate, on a batch that is on the device; the state is donated.

    Args:
      norm: `instance` for the published network, with its second input channel; `group` for the default one.
      peer: `torch`, to train the twin in turns with it.
      profile: folder for a trace of one more step.
      compiler: backend of torch.compile, for the compiled peer.

    Returns:
      The row's shape (batch, *shape), times, peak_bytes, steps_per_s, bench_device.RATES and, with a peer,
      bench_peer.KEYS.
    """
    import jax

    from jaxsynth import keys
    from jaxsynth.tasks import ddpm

    module = bench_peer.load() if peer else None
    noise_channel = norm == "instance"
    config = read_config(features=features, norm=norm, noise_channel=noise_channel, bfloat16=bench_device.on_gpu())
    parts, key = ddpm.build(config), keys.root(0)
    images = jax.random.uniform(key, (batch, *shape, 1), minval=-1.0)

    def theirs(compiler):
        options = {"batch": batch, "features": features, "norm": norm, "noise_channel": noise_channel}
        return bench_peer.training(module, shape, parts.schedule, **options, compiler=compiler)

    flops = operations(shape, batch, features, 1 + noise_channel)
    options = {"rounds": rounds, "compiler": compiler, "profile": profile}
    return measured(
        ddpm,
        parts,
        images,
        (batch, *shape),
        flops,
        theirs if peer else None,
        **options,
    )


def measured(
    task,
    parts,
    batch,
    shape: tuple[int, ...],
    flops: float,
    theirs: Callable | None,
    *,
    rounds: int,
    compiler: str,
    profile: Path | None,
) -> dict:
    """The row of a step of any task, beside its peer.

    Args:
      batch: what the step takes, on the device. shape: the row's, (B, *patch).
      flops: of the direct convolutions of a step.
      theirs: a function of a compiler or None that gives the peer's step, see `bench_peer.beside`; None: no peer.
    """
    import jax

    from jaxsynth import keys, train_programs

    key = keys.root(0)
    state = jax.jit(lambda k: task.init(parts, k, (*shape, 1)))(key)
    began = time.perf_counter()
    program = train_programs.compile_step(task, parts, key, state, batch)
    row = {"shape": shape, "compile_s": time.perf_counter() - began}

    def ours():
        nonlocal state
        state, values = program(state, batch, key)
        jax.block_until_ready((state, values))

    ours()
    row["peak_bytes"] = bench_device.peak_bytes(program)  # not before: an accelerator tells what was, not what will be
    if theirs:
        spent, beside = bench_peer.beside(ours, theirs, "training step", rounds, compiler)
        row |= beside
    else:
        (spent,) = bench_device.turns(rounds, (ours, 1))
    row["median_s"] = statistics.median(spent)
    row["steps_per_s"] = 1 / row["median_s"]
    row |= bench_device.rates(flops, program, row["median_s"])
    with bench_device.traced(profile):
        ours()
    return row


def operations(shape: tuple[int, ...], batch: int, features: int, in_channels: int) -> float:
    """Of the direct convolutions of a step of training, two per multiply-add. The gradients of a convolution, by its
    input and by its kernel, take as many as itself, each."""
    from jaxsynth.nn import unet

    return 3 * 2 * unet.operations(len(shape), features, in_channels)[2] * batch * math.prod(shape)


def read_config(**model):
    """configs/ddpm.py with a constant learning rate and these keys of its section `model`."""
    words = [f"--config.model.{name}={value}" for name, value in model.items()]
    return cli.read_config(str(CONFIG), ["--config.optim.schedule=constant", *words])


def split(shape: tuple[int, ...], *, batch: int, space: int, **model) -> dict:
    """How the step of the published network splits over 8 fake CPU devices, `space` of them sharing a patch: compiled
    in a process of its own, not run.

    Returns:
      The row's shape and peak_bytes, per device; flops_share: XLA's count of a device's operations over its count for
      one device that has the whole batch; communication_bytes: {collective: bytes of its results per device and step}.
    """
    code = "import sys, json; from jaxsynth import bench_train; a = json.loads(sys.argv[1]); "
    code += "print(json.dumps(bench_train.counted(**a)))"
    arguments = json.dumps({"shape": shape, "batch": batch, "space": space, "model": model})
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(FLAGS)}
    words = [sys.executable, "-c", code, arguments]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"counting on {DEVICES} fake devices failed:\n{done.stderr}")
    note = f"counted on {DEVICES} fake CPU devices, {space} to a patch; not run"
    return json.loads(done.stdout.splitlines()[-1]) | {"shape": (batch, *shape), "note": note}


def counted(shape: tuple[int, ...], batch: int, space: int, model: dict) -> dict:
    """The counts of `split`, for the devices of this process."""
    import jax

    from jaxsynth import devices, keys, train_programs
    from jaxsynth.tasks import ddpm

    config = read_config(**{"norm": "instance", "noise_channel": True} | model)
    config.parallel.space = space  # as in a training: shared patches take convolutions of another form
    parts, key, batch_shape = ddpm.build(config), keys.root(0), (batch, *shape, 1)
    state = jax.eval_shape(lambda key: ddpm.init(parts, key, batch_shape), key)

    def compile_for(mesh):
        def on(sharding, x):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        images = jax.ShapeDtypeStruct(batch_shape, "float32", sharding=devices.split_space(mesh, len(shape)))
        placed = jax.tree.map(functools.partial(on, devices.replicated(mesh)), state)
        return train_programs.compile_step(ddpm, parts, key, placed, images)

    meshes = devices.make_mesh(jax.devices()[:1]), devices.make_mesh(space=space)
    alone, shared = map(compile_for, meshes)
    share = shared.cost_analysis()["flops"] / alone.cost_analysis()["flops"]
    sent = devices.communication(shared)
    return {"peak_bytes": bench_device.peak_bytes(shared), "flops_share": share, "communication_bytes": sent}
