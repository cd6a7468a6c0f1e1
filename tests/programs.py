"""Train steps that tests compile once, however many runs they train with them."""

from __future__ import annotations

import json

import jax

from paella_jax.training import compiled_step, loop

# Fields that no program depends on; the schedule's length and rate are arguments of the step.
APART = ("num_steps", "seed", "log", "checkpoint", "evaluation", "sampler", "preset")
PACE = ("learning_rate", "decay_steps")


def _made_of(config, method, mesh, *trees):
    fields = {name: value for name, value in config.to_dict().items() if name not in APART}
    fields["optim"] = {n: value for n, value in fields["optim"].items() if n not in PACE}
    shapes = [(str(jax.tree.structure(t)), [(x.shape, x.dtype) for x in jax.tree.leaves(t)])
              for t in trees]  # fmt: skip
    code = [getattr(f, "__qualname__", "") for f in (method.init, method.objective)]
    return json.dumps(fields, sort_keys=True), str(code), mesh, str(shapes)


def remember_programs() -> None:
    """Makes the loop look for a program of the same config, shapes and mesh before it compiles."""
    compile_step, abstract_state = compiled_step.compile_step, loop.abstract_state
    steps, states = {}, {}

    def step_of(config, method, state, frozen, base_key, mesh, options=None, batch=None):
        arguments = (config, method, state, frozen, base_key, mesh, options, batch)
        if options or batch is None:
            return compile_step(*arguments)
        key = _made_of(config, method, mesh, state, frozen, batch)
        if key not in steps:
            steps[key] = compile_step(*arguments)
        return steps[key]

    def state_of(config, method, mesh):
        key = _made_of(config, method, mesh, method.frozen)
        if key not in states:
            states[key] = abstract_state(config, method, mesh)
        return states[key]

    compiled_step.compile_step = step_of
    loop.abstract_state = state_of
