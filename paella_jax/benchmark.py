"""Measure speed: `python -m paella_jax.benchmark --config configs/paella.py:shapes [--out FILE]`.

Variants are interleaved in one run and compared by the ratio of their medians, since machines are
noisy. `--peer FILE` adds a callable from a Python file (`make(config, batch_size) -> function`,
one forward and backward pass per call), e.g. the same network in another framework.
`--sample` instead draws an image with random weights and prints time and memory: of a Paella, or
with configs/stage_c.py of all Würstchen stages, one after the other. `--data` measures how fast the
config's images are read instead (`--photos 512x384`: made-up JPEGs of that size).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paella_jax.cli import Parser, path, run, setup_jax
from paella_jax.evaluation.timing import interleaved

# The Stage B preset of a Stage C one, where they differ.
STAGE_B = {"paper": "v2", "v2_mixed": "v2", "v2_aesthetic": "v2"}


def predictor_passes(config: Any, batch_size: int, depthwise: str) -> tuple[Callable[[], Any], int]:
    """One forward and backward pass of the token predictor, and its parameter count."""
    import jax
    import jax.numpy as jnp

    from paella_jax.families.token_training import parameter_count
    from paella_jax.models.conditioning import Conditioning
    from paella_jax.models.paella import Paella

    model = Paella(**config.model, depthwise=depthwise, dtype=jnp.dtype(config.precision))
    side = config.data.image_size // 4
    tokens = jax.random.randint(jax.random.key(0), (batch_size, side, side), 0, model.codebook_size)
    t = jnp.full((batch_size,), 0.5)
    shape = (batch_size, config.text.pad_to, config.text.width)
    cond = Conditioning(text=jax.random.normal(jax.random.key(1), shape))
    params = jax.jit(model.init)(jax.random.key(2), tokens, t, cond)

    def loss(params: Any) -> Any:
        return jnp.square(model.apply(params, tokens, t, cond)).mean()

    gradient = jax.jit(jax.grad(loss))
    return lambda: jax.block_until_ready(gradient(params)), parameter_count(params)


def matmul_ceiling(dtype: str) -> float:
    """FLOP/s of a large square matrix product on this device, best of several."""
    import jax
    import jax.numpy as jnp

    size = 2048 if jax.default_backend() == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    multiply = jax.jit(lambda a: a @ a)
    times = interleaved({"matmul": lambda: jax.block_until_ready(multiply(a))}, 5)["matmul"]
    return 2 * size**3 / min(times)


def sampling_report(config: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time and memory of drawing an image with random weights, by the config's method."""
    from paella_jax.config import load_config

    size, dtype = arguments.image_size, arguments.params_dtype
    if config.method != "stage_c":
        from paella_jax.reports.sampling_speed import sampling_cost

        return sampling_cost(config, image_size=size, params_dtype=dtype)
    from paella_jax.reports.wuerstchen_speed import wuerstchen_cost

    stage_b = load_config(f"stage_b:{STAGE_B.get(config.preset, config.preset)}")
    batch = arguments.batch_size or 1
    return wuerstchen_cost(config, stage_b, image_size=size, batch=batch, params_dtype=dtype)


def training_report(config: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time of a forward and backward pass, against the plain convolution and a peer if given."""
    import jax

    batch_size = arguments.batch_size or config.batch_size
    tuned, parameters = predictor_passes(config, batch_size, "auto")
    naive, _ = predictor_passes(config, batch_size, "convolution")
    variants = {"tuned": tuned, "grouped_convolution": naive}
    if arguments.peer:
        spec = importlib.util.spec_from_file_location("peer", arguments.peer)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        variants["peer"] = module.make(config, batch_size)
    times = interleaved(variants, arguments.rounds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "device": str(jax.devices()[0]),
        "parameters": parameters,
        "batch_size": batch_size,
        "milliseconds": {name: round(1000 * value, 2) for name, value in medians.items()},
        "times_slower_than_tuned": {
            name: round(value / medians["tuned"], 2) for name, value in medians.items()
        },
        "images_per_second": round(batch_size / medians["tuned"], 1),
        "matmul_ceiling_gflops": round(matmul_ceiling(config.precision) / 1e9, 1),
    }


def reading_report(config: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """How fast the config's images are read, or photos of a size that are made up here."""
    from paella_jax.config import IMPLIED, ConfigError, with_overrides
    from paella_jax.reports.reading_speed import reading_cost, write_photos

    if not arguments.photos:
        return reading_cost(config, arguments.seconds)
    sides = arguments.photos.split("x")
    if len(sides) != 2 or not all(side.isdigit() and int(side) > 0 for side in sides):
        raise ConfigError(f"--photos must be WIDTHxHEIGHT, got {arguments.photos!r}")
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), *map(int, sides))
        others = [f"{field}=" for field in IMPLIED]
        given = [f"data.folder={folder}", "data.source=folder"]
        photos = with_overrides(config, [*others, *given])
        return {"photos": arguments.photos} | reading_cost(photos, arguments.seconds)


def main() -> int:
    """Runs the benchmark and prints (and writes) its numbers."""
    parser = Parser(description=__doc__, overrides=True)
    parser.add_argument("--config", default="paella:shapes")
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peer", type=path, help="Python file with make(config, batch_size)")
    parser.add_argument("--sample", action="store_true", help="draw one image, random weights")
    parser.add_argument("--data", action="store_true", help="read the config's images")
    parser.add_argument("--photos", default="", help="with --data: WIDTHxHEIGHT of made-up JPEGs")
    parser.add_argument("--seconds", type=float, default=5.0, help="with --data: of CPU, twice")
    parser.add_argument("--image_size", type=int, default=256, help="with --sample")
    parser.add_argument("--params_dtype", default="float32", help="with --sample")
    parser.add_argument("--out", type=path, help="JSON file")
    arguments, overrides = parser.parse_known_args()

    from paella_jax.config import load_config

    config = load_config(arguments.config, overrides)
    setup_jax()
    if arguments.out:
        from paella_jax.files.atomic import check_writable

        check_writable(Path(arguments.out), folder=False)
    measure = sampling_report if arguments.sample else training_report
    if arguments.data or arguments.photos:
        measure = reading_report
    write({"config": arguments.config} | measure(config, arguments), arguments.out)
    return 0


def write(report: dict[str, Any], out: str | None) -> None:
    """Prints the report, and writes it where asked."""
    text = json.dumps(report, indent=2)
    print(text)
    if out:
        Path(out).write_text(text)


if __name__ == "__main__":
    run(main)
