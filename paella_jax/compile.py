"""Compile any preset's train step without running it or needing any file:

    python -m paella_jax.compile --config configs/paella.py:1b --devices 8

prints parameters, FLOPs, memory per device and collectives as JSON. `--devices` simulates that many
devices on a CPU; without it the machine's own are used. Memory is XLA's account for the platform it
compiles for: a CPU's arguments are those of any platform, its temporaries are not (it computes
bfloat16 in float32 and saves no memory in its order of operations).
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from paella_jax.cli import run


def main() -> int:
    """Parses the command line and compiles."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True, help="configs/NAME.py:preset")
    parser.add_argument("--devices", type=int, help="simulated devices (CPU)")
    arguments, overrides = parser.parse_known_args()
    if arguments.devices is not None and arguments.devices < 1:
        parser.error(f"--devices must be at least 1, got {arguments.devices}")
    if arguments.devices:  # must come before jax looks for devices
        flag = f"--xla_force_host_platform_device_count={arguments.devices}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
        os.environ["JAX_PLATFORMS"] = "cpu"

    from paella_jax.config import load_config

    config = load_config(arguments.config, overrides)
    print(json.dumps(compile_preset(config), indent=2))
    return 0


def compile_preset(config: Any) -> dict[str, Any]:
    """Compiles one step of a config for all devices; returns what `compile` prints."""
    import jax

    from paella_jax.evaluation.flops import count_flops
    from paella_jax.families.abstract import abstract_frozen
    from paella_jax.families.start import settle_config
    from paella_jax.registry import abstract_method
    from paella_jax.training.compiled_step import (
        FOR_LOOKING,
        MIB,
        bytes_per_device,
        compile_step,
        describe,
        first_batch,
        jitted_step,
    )
    from paella_jax.training.loop import abstract_state
    from paella_jax.training.sharding import check_batch, make_mesh, replicated

    config = settle_config(config, None)
    method = abstract_method(config)
    mesh = make_mesh(config.mesh)
    check_batch(config.batch_size, config.optim.accumulation, mesh)
    with jax.set_mesh(mesh):
        state, _ = abstract_state(config, method, mesh)
        frozen = abstract_frozen(method.frozen, mesh)
        key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=replicated(mesh))
        batch = first_batch(config, method, mesh)
        options = FOR_LOOKING if jax.default_backend() == "cpu" else None
        compiled, seconds = compile_step(config, method, state, frozen, key, mesh, options, batch)
        flops = count_flops(
            jitted_step(config, method, state, mesh), state, frozen, batch, key, config.num_steps
        )
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    trees = {
        "parameters": state.params,
        "averages": state.ema_params,
        "optimizer": state.opt_state,
        **{f"frozen {name}": tree for name, tree in frozen.items()},
        "batch": batch,
    }
    held = {name: bytes_per_device(tree) for name, tree in trees.items()}
    return {
        "preset": config.preset,
        "mesh": dict(mesh.shape),
        "batch_size": config.batch_size,
        "micro_batches": config.optim.accumulation,
        "trained_parameters": count(state.params),
        "frozen_parameters": count(frozen),
        "compile_seconds": round(seconds, 1),
        # Products and convolutions of one update, frozen networks and recomputation included.
        "teraflops": round(flops / 1e12, 3),
        **describe(compiled),
        # On one device; XLA's arguments lack what the step does not read (a tokenizer's decoder).
        "held_mib_of": {name: round(size / MIB) for name, size in held.items()},
    }


if __name__ == "__main__":
    run(main)
