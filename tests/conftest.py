"""Test set-up: simulated devices, strict JAX settings, shared run folders, the --golden option."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import pytest
from shared_runs import SharedRuns

jax.config.update("jax_numpy_rank_promotion", "raise")
# Hundreds of small programs run a few times each: a third of the time went into optimising them.
# Commands that tests start in processes of their own are optimised.
jax.config.update("jax_disable_most_optimizations", True)
# Many tests compile the same small programs; the cache also serves the next run. Even programs of
# a few milliseconds are kept: there are thousands of them.
CACHE = Path(__file__).resolve().parent.parent / ".pytest_cache" / "xla"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

ALL_DEVICES = tuple(jax.devices())


def pytest_addoption(parser):
    parser.addoption(
        "--golden",
        default=str(Path(__file__).parent / "golden"),
        help="folder tree of recorded reference outputs (default: tests/golden)",
    )


def _show_devices(node):
    """Lets `jax.devices()` be as many as the marker `devices(N)` says, else one.

    Programs for one device compile in a fraction of the time of those for eight.
    """
    marker = node.get_closest_marker("devices")
    shown = list(ALL_DEVICES[: marker.args[0] if marker else 1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: shown)
        yield


@pytest.fixture(scope="module", autouse=True)
def devices_of_the_module(request):
    """For fixtures of the module's scope: the marker is in its `pytestmark`."""
    yield from _show_devices(request.node)


@pytest.fixture(autouse=True)
def devices_of_the_test(request, devices_of_the_module):
    yield from _show_devices(request.node)


@pytest.fixture(scope="session")
def shared_runs(tmp_path_factory, worker_id):
    """Small runs that several files use, trained once for all processes; copy before changing."""
    base = tmp_path_factory.getbasetemp()
    return SharedRuns((base if worker_id == "master" else base.parent) / "shared_runs")


@pytest.fixture
def highest_precision():
    with jax.default_matmul_precision("highest"):
        yield
