"""Training on from another run (`config.init_from`), of all parameters or of LoRA adapters.

The new run's folder holds all it needs: the other's frozen networks, and its weights either as the
checkpoint of step 0 or, for LoRA, as `frozen/base.safetensors`. Resuming never reads `init_from`.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from paella_jax.config import ConfigError, flatten_config
from paella_jax.families.networks import NETWORKS
from paella_jax.families.vqgan import DECODER_FIELDS, architecture_of
from paella_jax.families.vqgan_training import place_fixed
from paella_jax.objectives.inputs import StepInputs
from paella_jax.runs.checkpoint import Checkpointer, CheckpointError
from paella_jax.runs.derive import describes_networks, is_free, restore_all
from paella_jax.runs.folder import BEFORE, CONFIG_FILE, has_progress, read_config
from paella_jax.runs.frozen import FROZEN, copy_frozen, load_carried, place_of
from paella_jax.runs.lora import BASE, check_lora, lora_init, lora_merge
from paella_jax.runs.weights import save_tree
from paella_jax.training.distributed import first_alone
from paella_jax.training.loop import abstract_state
from paella_jax.training.method import Method
from paella_jax.training.optim import check_optim, make_optimizer, pace_of
from paella_jax.training.placing import place
from paella_jax.training.sharding import make_mesh
from paella_jax.training.state import TrainState, create_state
from paella_jax.typing import Array, Tree

LOW_TOKENIZER = "low_tokenizer"  # the small images'
# Beside what describes the networks: where a config leaves one of these None, it is taken over.
TAKEN_OVER = ("objective.", "sampler.", "precision", "data.image_size", LOW_TOKENIZER)
# Left behind by a run that has no such part: released weights have layers for both CLIP towers, a
# compressor may be frozen after training along, an adversary may be switched off.
OPTIONAL = ("predictor/conditioning/clip_text/", "predictor/conditioning/clip_image/",
            "compressor/", "discriminator/")  # fmt: skip
DISCRIMINATOR = "discriminator"
DECODER = "vqgan"  # all of a tokenizer that is trained where its encoder is fixed


def settle_config(config: ConfigDict, workdir: str | Path | None) -> ConfigDict:
    """Fills the fields that are None from `init_from`, or from the run to resume in `workdir`.

    Folders of encoders that are left empty are filled too: the encoders are carried along.

    Args:
      config: of a run.
      workdir: its folder; None for a config that is only looked at.

    Returns:
      The config unchanged where neither is given, else a filled copy.

    Raises:
      ConfigError: fields are left open, `init_from` is unfit (`source_config`), or the run to
        resume is of a network that is no more.
    """
    if "method" not in config:
        raise ConfigError(
            "this is no config of a run; a comparison's belongs to python -m paella_jax.compare"
        )
    config = config.copy_and_resolve_references()
    if workdir is not None and (Path(workdir) / CONFIG_FILE).is_file() and has_progress(workdir):
        known = read_config(workdir)
        if "cell" in known:
            NETWORKS[known.cell.network].check(known)
        with config.unlocked():
            config.init_from = config.init_from or known.get("init_from", "")
    elif config.init_from:
        known = source_config(config)
    if config.init_from:
        stored = flatten_config(known)
        for name, value in flatten_config(config).items():
            taken = name.startswith(TAKEN_OVER) or describes_networks(name)
            if taken and _is_open(name, value):
                _set(config, name, stored.get(name, BEFORE.get(name, value)))
    _require_settled(config)
    return config.lock()


def _is_open(name: str, value: Any) -> bool:
    """Whether a config leaves a field that describes the networks to `init_from`."""
    return value is None or (value == "" and (name.endswith(".folder") or name == LOW_TOKENIZER))


def _set(config: ConfigDict, name: str, value: Any) -> None:
    *parents, last = name.split(".")
    for parent in parents:
        config = config[parent]
    config[last] = value


def _require_settled(config: ConfigDict) -> None:
    """Raises ConfigError where a field that describes the networks is None."""
    fields = flatten_config(config)
    names = [name for name in fields if fields[name] is None and describes_networks(name)]
    if names and not config.init_from:
        raise ConfigError(
            f"preset {config.preset!r} trains on from another run: give --config.init_from=RUN"
        )
    if names:
        shown = ", ".join(f"--config.{name}=..." for name in names)
        raise ConfigError(f"init_from {config.init_from} does not say these, give them: {shown}")


def source_config(config: ConfigDict) -> ConfigDict:
    """The config of `init_from`, after checking that this run can start from it.

    Raises:
      ConfigError: no run there, one of another method, or other networks; all differing fields are
        listed.
    """
    try:
        source = read_config(config.init_from)
    except CheckpointError as error:
        raise ConfigError(f"init_from: {error}") from error
    if source.method != config.method:
        raise ConfigError(
            f"init_from {config.init_from} holds a run of method {source.method!r}, this one is "
            f"{config.method!r}; choose the config file of that method"
        )
    theirs, ours = flatten_config(source), flatten_config(config)
    free = DECODER_FIELDS if config.get("train_decoder_only") else set()
    if config.method == "vqgan":
        theirs["architecture"] = architecture_of(source)  # which older runs do not name
    # A folder that the source leaves empty may be given: converted weights bring no encoders.
    differing = [
        f"{name}: {theirs[name]!r} -> {ours[name]!r}"
        for name in sorted(theirs.keys() & ours.keys() - free)
        if describes_networks(name)
        and not is_free(name)
        and ours[name] != theirs[name]
        and not _is_open(name, ours[name])
        and not (name.endswith(".folder") and theirs[name] == "")
    ]
    if differing:
        raise ConfigError(
            f"init_from {config.init_from} has other networks; leave these fields to it "
            "(configs/paella.py:finetune does):\n  " + "\n  ".join(differing)
        )
    return source


def carry_frozen(config: ConfigDict, workdir: Path) -> None:
    """Copies the frozen networks of `init_from` into a new run's folder, once and whole.

    A tokenizer given as `config.tokenizer`, and another `config.low_tokenizer`, take the place of
    the other run's.

    Raises:
      ConfigError: `init_from` is unfit (`source_config`), or the config was never settled.
    """
    _require_settled(config)
    if not config.init_from or (workdir / FROZEN).is_dir() or has_progress(workdir):
        return
    source_config(config)
    low = config.get(LOW_TOKENIZER, "")
    replaced = ["base"]
    if config.get("tokenizer"):
        replaced.append("tokenizer")
    if low and low != read_config(config.init_from).get(LOW_TOKENIZER, ""):
        replaced.append(LOW_TOKENIZER)
    copy_frozen(config.init_from, workdir, replaced)


def fine_tuned(config: ConfigDict, workdir: Path, method: Method) -> Method:
    """The method starting from `init_from`, or unchanged where that is empty.

    Raises:
      ConfigError: LoRA settings that cannot be, or weights that do not fit the networks.
    """
    check_lora(config.lora)
    check_optim(config.optim)
    if config.lora.rank and not (config.init_from and config.method == "tokens"):
        raise ConfigError(
            f"lora.rank {config.lora.rank} needs method 'tokens' and --config.init_from=RUN, the "
            f"run to adapt; got method {config.method!r}, init_from {config.init_from!r}"
        )
    if not config.init_from:
        return method
    if config.lora.rank:
        file = place_of("base", workdir)
        first_alone("base", partial(_save_base, config, method, file))
        return lora_method(method, load_carried("base", workdir), config)
    checkpointer = Checkpointer(workdir, config.checkpoint.keep)
    if checkpointer.latest_step() is None:
        _save_start(config, method, checkpointer)
    checkpointer.close()
    return method


def _save_base(config: ConfigDict, method: Method, file: Path) -> None:
    if not file.is_file():
        save_tree(file, _starting_params(config, method)[0])


def _starting_params(config: ConfigDict, method: Method) -> tuple[Tree, Tree]:
    """Weights (averaged ones if there are any) and model state of `init_from`, checked to fit."""
    source = source_config(config)
    _, params, model_state = restore_all(config.init_from, source)
    wanted, wanted_state = jax.eval_shape(method.init, jax.random.key(0))
    fresh = []
    if DISCRIMINATOR in wanted and DISCRIMINATOR not in params:
        # Released tokenizers come without the adversary they were trained with.
        fresh.append(DISCRIMINATOR)
    if config.method == "vqgan":
        decoder_only = config.get("train_decoder_only", False)
        params, model_state = place_fixed(params, model_state, decoder_only)
        if decoder_only and _shapes(params[DECODER]) != _shapes(wanted[DECODER]):
            fresh.append(DECODER)  # a decoder of another size
    if fresh:
        drawn, drawn_state = jax.jit(method.init)(jax.random.key(config.seed))
        params = {**params, **{name: drawn[name] for name in fresh}}
        if DISCRIMINATOR in fresh:
            model_state = {**model_state, DISCRIMINATOR: drawn_state[DISCRIMINATOR]}
    name = f"init_from {config.init_from}"
    return _fit(params, wanted, name), _fit(model_state, wanted_state, name)


def _shapes(tree: Tree) -> dict[tuple[str, ...], tuple[int, ...]]:
    return {path: tuple(x.shape) for path, x in flatten_dict(tree).items()}


def _fit(tree: Tree, wanted: Tree, source: str) -> Tree:
    """The wanted leaves of a tree. Raises ConfigError listing every one that does not fit."""
    flat, shapes = flatten_dict(tree, sep="/"), flatten_dict(wanted, sep="/")
    paths = flatten_dict(wanted)  # spectral norms have names with a slash inside
    absent = object()
    shape = lambda x: "absent" if x is absent else list(x.shape)
    problems = [
        f"{name}: {shape(flat.get(name, absent))} -> {shape(shapes.get(name, absent))}"
        for name in sorted(flat.keys() | shapes.keys())
        if shape(flat.get(name, absent)) != shape(shapes.get(name, absent))
        and not (name not in shapes and name.startswith(OPTIONAL))
    ]
    if problems:
        raise ConfigError(
            f"{source} does not fit the networks of this run (there -> here):\n  "
            + "\n  ".join(problems)
        )
    return unflatten_dict({path: flat["/".join(path)] for path in paths})


def _save_start(config: ConfigDict, method: Method, checkpointer: Checkpointer) -> None:
    """Writes the checkpoint of step 0. The loop then resumes from it as from any other.

    Weights held by `method.init` would become constants of a compiled program, which cannot hold
    more than 2 GiB.
    """
    params, model_state = _starting_params(config, method)
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        abstract, _ = abstract_state(config, method, mesh)
        shardings = jax.tree.map(lambda x: x.sharding, abstract)
        optimizer = make_optimizer(config.optim, pace_of(config))
        create = jax.jit(
            lambda p, s: create_state(p, s, optimizer, config.optim.ema_decay > 0),
            out_shardings=shardings,
        )
        state = create(
            place(params, shardings.params),
            place(model_state, shardings.model_state),
        )
        checkpointer.save(0, state)
        checkpointer.wait()


def lora_method(method: Method, base: Tree, config: ConfigDict) -> Method:
    """A method that trains adapters of `base`; what looks at weights sees the merged ones.

    Args:
      method: of the whole parameters, without model state or `after_update`.
      base: its parameters; a further frozen tree, "base".
      config: a run's, with a `lora` block.

    Raises:
      ConfigError: the pattern fits no matrix.
    """
    lora = config.lora
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), base)

    def init(key: Array) -> tuple[Tree, Tree]:
        return lora_init(key, shapes, lora.pattern, lora.rank), {}

    jax.eval_shape(init, jax.random.key(0))  # a pattern that fits nothing ends here

    def merge(adapters: Tree, frozen: Tree) -> Tree:
        return lora_merge(frozen[BASE], adapters, lora.alpha)

    def objective(params: Tree, inputs: StepInputs) -> tuple[Array, tuple[dict[str, Array], Tree]]:
        return method.objective(merge(params, inputs.frozen), inputs)

    merge_once = jax.jit(merge)

    def merged(state: TrainState, frozen: Tree) -> tuple[TrainState, Tree]:
        whole = merge_once(state.eval_params, frozen)
        rest = {name: tree for name, tree in frozen.items() if name != BASE}
        return dataclasses.replace(state, params=whole, ema_params={}), rest

    preview, validation = method.preview, method.validation
    return dataclasses.replace(
        method,
        init=init,
        objective=objective,
        frozen={**method.frozen, BASE: base},
        preview=preview and (lambda state, frozen, file: preview(*merged(state, frozen), file)),
        validation=validation and (lambda state, frozen: validation(*merged(state, frozen))),
    )
