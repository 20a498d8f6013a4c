"""Fixtures of the whole suite: a shared compilation cache and the folder of real images."""

import os
from pathlib import Path

import pytest


def pytest_configure(config):
    """XLA's flags, set before jax starts.

    Eight fake CPU devices: sharding is tested as it is used. No expensive compiler passes: the suite compiles many
    programs and runs each on small shapes, and this compiles five times faster.
    """
    flags = (
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_use_fusion_emitters=false",
    )
    os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *flags)).strip()
    from jaxsynth import cli

    cli.enable_compilation_cache()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images named by JAXSYNTH_DATA; the test is skipped where there is none."""
    folder = os.environ.get("JAXSYNTH_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("JAXSYNTH_DATA names no folder of real images")
    return Path(folder).resolve()


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Every module leaves its compiled programs behind; kept, they would fill several GB by the end of the suite."""
    yield
    import jax

    jax.clear_caches()
