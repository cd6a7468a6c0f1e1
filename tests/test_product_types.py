"""Products of the train step in bfloat16: none multiplies two types, on the way back neither."""

from __future__ import annotations

import jax
import pytest
import small
from jax.interpreters import partial_eval
from ml_collections import ConfigDict

from paella_jax.compile.programs import train_program
from paella_jax.evaluation.flops import _jaxprs
from paella_jax.families.start import settle_config
from paella_jax.training.sharding import make_mesh

PRODUCTS = ("dot_general", "conv_general_dilated")
NETWORKS = ["paella:tiny", "muse:tiny", "stage_c:tiny"]


def products(jaxpr):
    """All equations that multiply, those of inner programs too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in PRODUCTS:
            yield equation
        for inner in _jaxprs(equation.params):
            yield from products(inner)


def types_of(name, **overrides):
    config = settle_config(small.config_of(name, precision="bfloat16", **overrides), None)
    mesh = make_mesh(ConfigDict({"data": -1, "fsdp": 1, "tensor": 1}))
    with jax.set_mesh(mesh):
        program = train_program(config, mesh, True)
        jaxpr = program.function.trace(*program.arguments).jaxpr.jaxpr
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return [tuple(str(x.aval.dtype) for x in e.invars[:2]) for e in products(jaxpr)]


@pytest.mark.parametrize("name", [*NETWORKS, "uvit"])
def test_no_product_of_two_types(name):
    found = types_of("paella:tiny", cell__network="uvit") if name == "uvit" else types_of(name)
    assert ("bfloat16", "bfloat16") in found
    assert {pair for pair in found if pair[0] != pair[1]} == set()
