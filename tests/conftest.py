"""Test set-up: eight simulated CPU devices, strict JAX settings, the --golden option."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# Hundreds of small programs run a few times each: a third of the time went into optimising them.
# Commands that tests start in processes of their own are optimised.
jax.config.update("jax_disable_most_optimizations", True)
# Many tests compile the same small programs; the cache also serves the next run.
CACHE = Path(__file__).resolve().parent.parent / ".pytest_cache" / "xla"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def pytest_addoption(parser):
    parser.addoption(
        "--golden",
        default=str(Path(__file__).parent / "golden"),
        help="folder tree of recorded reference outputs (default: tests/golden)",
    )


@pytest.fixture
def highest_precision():
    with jax.default_matmul_precision("highest"):
        yield
