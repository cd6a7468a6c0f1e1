"""Test set-up: simulated devices, strict JAX settings, shared run folders, the --golden option."""

from __future__ import annotations

import gc
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The MLIR emitters of fused loops take half of the time that compiling small programs takes, and
# cutting a program into parts for several threads a sixth of the rest.
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
    )
)

import jax
import numpy as np
import pytest
import small
from flax.core import scope as flax_scope
from programs import remember_programs
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

# Tracing makes millions of small objects that live on: looking through them every 700 took a sixth
# of the time.
gc.freeze()
gc.set_threshold(100_000, 20, 20)

# Every file that appears whole waits for the disk, so that no loss of power takes it: hundreds of
# times in these tests. tests/faults.py, in processes of its own, counts on the real one.
os.fsync = lambda opened: None

flax_param = flax_scope.Scope.param


def param_of_known_shape(scope, name, init_fn, *args, **options):
    """As flax, which traces every initialiser again at every call to learn the shape it would give.

    That took a quarter of the time. It is the shape the initialiser is asked for.
    """
    if args and isinstance(args[0], tuple) and scope.has_variable("params", name):
        value = scope.get_variable("params", name)
        if np.shape(value) == args[0]:
            scope.reserve(name, "params")
            return value
    return flax_param(scope, name, init_fn, *args, **options)


flax_scope.Scope.param = param_of_known_shape
remember_programs()


def pytest_addoption(parser):
    parser.addoption(
        "--golden",
        default=str(Path(__file__).parent / "golden"),
        help="folder tree of recorded reference outputs (default: tests/golden)",
    )


def _devices_of(node):
    """As many as the marker `devices(N)` says, else one.

    One is for what compiles long, eight for pipelines: they fill a batch up to the number of
    devices, so that batches of 1 to 8 images share one program.
    """
    marker = node.get_closest_marker("devices")
    return small.devices_shown(marker.args[0] if marker else 1)


# The longest of the suite and of the slow lane, begun first and in this order: no process waits for
# one of them at the end.
LONG_FILES = (
    "test_icons.py", "test_notebooks.py", "test_repeat.py", "test_end_to_end.py",
    "test_processes.py", "test_serve_browser.py", "test_slurm.py", "test_compare.py",
    "test_long_runs.py", "test_faults.py", "test_full_size.py", "test_wuerstchen.py",
    "test_training.py", "test_compile.py",
)  # fmt: skip
TURNS = {name: turn for turn, name in enumerate(LONG_FILES)}


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: TURNS.get(item.path.name, len(TURNS)))


@pytest.fixture(scope="module", autouse=True)
def devices_of_the_module(request):
    """For fixtures of the module's scope: the marker is in its `pytestmark`."""
    with _devices_of(request.node):
        yield


@pytest.fixture(autouse=True)
def devices_of_the_test(request, devices_of_the_module):
    with _devices_of(request.node):
        yield


@pytest.fixture(scope="session")
def shared_runs(tmp_path_factory, worker_id):
    """Small runs that several files use, trained once for all processes; copy before changing."""
    base = tmp_path_factory.getbasetemp()
    return SharedRuns((base if worker_id == "master" else base.parent) / "shared_runs")


@pytest.fixture
def highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture
def keys_used_once():
    """jax raises where a PRNG key is drawn from twice, inside of programs too.

    Not in files whose tests share keys, as two draws by one key may be compared; nor in training:
    its steps take the keys of a split array one by one, and each is to jax a use of the whole.
    """
    with jax.debug_key_reuse(True):
        yield


@pytest.fixture
def votes_not_waited_for(monkeypatch):
    """A vote waits for the disk, a test need not: it took most of the time."""
    from paella_jax.serving.store import Store

    connect = Store._connect

    def fast(store):
        connection = connect(store)
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    monkeypatch.setattr(Store, "_connect", fast)
