"""What every command-line entry shares: compilation cache, cluster start, short error messages."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

# Mistakes of the user: shown as one line, without a traceback.
USER_ERRORS = ("ConfigError", "CheckpointError", "MeshError", "PromptError", "ConversionError",
               "TrainingDiverged")  # fmt: skip
CLUSTER_HINTS = ("JAX_COORDINATOR_ADDRESS", "SLURM_JOB_NUM_NODES", "OMPI_COMM_WORLD_SIZE")


def setup_jax() -> None:
    """Turns on the persistent compilation cache, and joins the cluster where there is one."""
    import jax

    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "paella_jax" / "xla"
    jax.config.update(
        "jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR", str(default))
    )
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    many = any(os.environ.get(hint, "1") not in ("", "1") for hint in CLUSTER_HINTS)
    if many or ("TPU_WORKER_HOSTNAMES" in os.environ and "," in os.environ["TPU_WORKER_HOSTNAMES"]):
        jax.distributed.initialize()


def run(main: Callable[[], int]) -> None:
    """Runs an entry point; a user's mistake ends in one clear line and exit code 2."""
    from absl import logging

    logging.set_verbosity(logging.ERROR)  # orbax warns about its own details
    logging.use_absl_handler()
    try:
        sys.exit(main())
    except (ValueError, RuntimeError, OSError) as error:
        if type(error).__name__ not in USER_ERRORS and not isinstance(error, ValueError):
            raise
        if type(error).__name__ not in USER_ERRORS and os.environ.get("PAELLA_JAX_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
