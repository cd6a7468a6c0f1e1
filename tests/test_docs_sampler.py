"""The samplers' loops stay as short as the documentation shows the simplest of them."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap

import pytest
import small

from paella_jax.sampling import diffusion, parallel_decode, renoise, resample, token_sampler

PAGE = small.ROOT / "paella_jax" / "docs" / "models" / "paella.md"
MARKER = "<!-- sampler: sampling/renoise.py -->"
LONGEST = 12
BODIES = {
    "renoise": (renoise, "renoise"),
    "parallel_decode": (parallel_decode, "body"),
    "resample": (resample, "body"),
    "diffusion": (diffusion, "body"),
}
PUBLIC = [renoise.sample, parallel_decode.parallel_decode, resample.resample, diffusion.sample,
          token_sampler.draw_tokens]  # fmt: skip


def function_in(source, name):
    """The one function of this name, wherever it stands."""
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    (function,) = [node for node in found if node.name == name]
    return function


def lines_without_docstring(function):
    first = function.body[1] if ast.get_docstring(function) else function.body[0]
    return function.end_lineno - first.lineno + 1


def test_the_page_shows_the_sampler_as_it_is():
    assert PAGE.read_text().count(MARKER) == 1
    after = PAGE.read_text().split(MARKER)[1]
    block = re.match(r"\s*```python\n(.*?)\n```", after, re.DOTALL)
    assert block, f"no python block follows {MARKER} in {PAGE.name}"
    source = textwrap.dedent(inspect.getsource(renoise.renoise))
    assert block[1] == source.rstrip("\n")


@pytest.mark.parametrize("name", BODIES)
def test_bodies_are_short_and_choose_nothing(name):
    """At most twelve lines, and no policy is branched on inside the scan."""
    module, function_name = BODIES[name]
    body = function_in(inspect.getsource(module), function_name)
    lines = lines_without_docstring(body)
    print(f"{name}: {lines} lines")
    assert lines <= LONGEST
    branches = [
        n for n in ast.walk(body) if isinstance(n, ast.If | ast.IfExp | ast.Match | ast.Compare)
    ]
    assert all(isinstance(n, ast.Compare) and isinstance(n.ops[0], ast.Eq) for n in branches)


@pytest.mark.parametrize("function", PUBLIC, ids=lambda f: f.__module__.rsplit(".", 1)[-1])
def test_a_sampler_has_at_most_eight_parameters(function):
    assert len(inspect.signature(function).parameters) <= 8
