"""Which runs a repetition trains: a tokenizer or two, what stands on them, and the seeds.

| a preset of | stands on | each seed trains |
|---|---|---|
| a token predictor | tokenizers | itself |
| super-resolution | tokenizers, tokenizers of small images | a base of the small images, itself |
| Stage C | tokenizers and a Stage B on each | itself (and a direct decoder) |

Seeds take turns on what they stand on. All of it is checked before anything is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from paella_jax.config import ConfigError, load_config
from paella_jax.data.build import make_source
from paella_jax.families.cells import check_cell
from paella_jax.families.networks import NETWORKS
from paella_jax.families.start import settle_config
from paella_jax.seeds.given import check_given, check_stage_b, check_tokenizer, config_of
from paella_jax.seeds.wish import Training, Wish
from paella_jax.training.metrics import check_packages

RETRAINED = 2  # tokenizers, so that a number is not of one tokenizer alone


class Seed(NamedTuple):
    """What one seed trains and stands on.

    Attributes:
      seed: of its trainings.
      name: of its files.
      stands_on: what -> run folder.
      trainings: "base", "run" and "direct" as far as there are such, in the order of training.
    """

    seed: int
    name: str
    stands_on: dict[str, str]
    trainings: dict[str, Training]


class Plan(NamedTuple):
    """Everything to train.

    Attributes:
      shared: what seeds stand on, in rounds; each round needs those before it.
      seeds: one each.
    """

    shared: list[list[Training]]
    seeds: list[Seed]

    def trainings(self) -> list[Training]:
        """All of them."""
        own = [training for seed in self.seeds for training in seed.trainings.values()]
        return [training for some in self.shared for training in some] + own


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from "0,1,2". Raises ConfigError."""
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--seeds {text!r} must be whole numbers such as 0,1,2") from None
    if min(seeds) < 0:
        raise ConfigError(f"--seeds {text!r} has one below 0")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds {text!r} has one twice; equal seeds train equal runs")
    return seeds


def make_plan(wish: Wish, out: Path) -> Plan:
    """The runs to train, below a folder.

    Raises:
      ConfigError, CheckpointError: what is wished cannot be trained and scored; nothing is written.
    """
    config = wish.config
    if "method" in config and config.data.source != "shapes":
        raise ConfigError(
            f"preset {config.preset!r} is on data.source={config.data.source}; repeat scores runs "
            "on the embedded data (data.source=shapes) only"
        )
    if config.get("init_from"):
        raise ConfigError("repeat trains from scratch; leave init_from out")
    check_packages(config)
    settle_config(config, None)
    if config.method not in ("tokens", "stage_c"):
        raise ConfigError(
            f"a run of method {config.method!r} draws no images from text; repeat a preset of "
            "paella, muse or stage_c"
        )
    if config.seed:
        raise ConfigError(f"leave --config.seed={config.seed} out: --seeds gives the seeds")
    if min(wish.num_images, wish.tuning_images) < 1:
        raise ConfigError("num_images and tuning_images must be at least 1")
    enlarges = config.method == "tokens" and _enlarges(config)
    if wish.tasks and (config.method != "tokens" or enlarges):
        raise ConfigError("--tasks scores the image tasks of token predictors of one scale")
    check_given(wish, enlarges)
    make_source(config.data, "train", 0)
    if config.method == "stage_c":
        return _plan_stage_c(wish, out)
    plan = _plan_tokens(wish, out, enlarges)
    for training in plan.seeds[0].trainings.values():
        check_cell(training.config)
    return plan


def _enlarges(config: ConfigDict) -> bool:
    network = NETWORKS.get(config.cell.network)
    return network is not None and "low_tokens" in network.takes


def _plan_tokens(wish: Wish, out: Path, enlarges: bool) -> Plan:
    config, size = wish.config, helper_preset(wish.config)
    folders, tokenizers = _stand_on(wish, out, "tokenizer", wish.tokenizers, f"vqgan:{size}")
    for folder in folders:
        check_tokenizer(folder, config_of(folder, tokenizers), config)
    lows: list[str] = []
    if enlarges:
        f8 = ("--config.model.levels=3",)
        lows, low_tokenizers = _stand_on(
            wish, out, "low_tokenizer", wish.low_tokenizers, f"vqgan:{size}", f8
        )
        for folder in lows:
            grid = config.super_resolution.low_grid
            check_tokenizer(folder, config_of(folder, low_tokenizers), config, grid)
        tokenizers = tokenizers + low_tokenizers
    seeds = []
    for place, seed in enumerate(wish.seeds):
        turn = place % len(folders)
        own, stands_on, trainings = f"seed_{seed}_on_{turn}", {"tokenizer": folders[turn]}, {}
        if enlarges:
            stands_on["low_tokenizer"] = lows[turn]
            base = base_config(config)
            trainings["base"] = _training(out / f"base_{own}", base, seed, tokenizer=lows[turn])
        trainings["run"] = _training(out / own, config, seed, **stands_on)
        seeds.append(Seed(seed, own, stands_on, trainings))
    return Plan([tokenizers], seeds)


def base_config(config: ConfigDict) -> ConfigDict:
    """A super-resolution's config -> one that draws the small images: muse's cell and sampler."""
    muse, base = load_config(f"muse:{helper_preset(config)}"), config.copy_and_resolve_references()
    with base.unlocked():
        base.cell.network, base.sampler, base.preset = muse.cell.network, muse.sampler, muse.preset
    return base


def _plan_stage_c(wish: Wish, out: Path) -> Plan:
    config, size = wish.config, helper_preset(wish.config)
    tokenizer_folders: list[str] = []
    tokenizers: list[Training] = []
    stage_bs: list[Training] = []
    folders = list(wish.stage_bs)
    if not folders:
        tokenizer_folders, tokenizers = _stand_on(
            wish, out, "tokenizer", wish.tokenizers, f"vqgan:{size}"
        )
        for turn, folder in enumerate(tokenizer_folders):
            check_tokenizer(folder, config_of(folder, tokenizers))
            stage_b = load_config(f"stage_b:{size}")
            workdir = out / f"stage_b_{turn}"
            stage_bs.append(_training(workdir, stage_b, turn, tokenizer=folder))
        folders = [str(training.workdir) for training in stage_bs]
    for folder in folders:
        check_stage_b(folder, config_of(folder, stage_bs), config)
    seeds = []
    for place, seed in enumerate(wish.seeds):
        turn = place % len(folders)
        own, stands_on = f"seed_{seed}_on_{turn}", {"stage_b": folders[turn]}
        trainings = {"run": _training(out / own, config, seed, **stands_on)}
        if wish.direct:
            direct = load_config(f"direct_decoder:{size}")
            trainings["direct"] = _training(out / f"direct_{own}", direct, seed, **stands_on)
        if tokenizer_folders:
            stands_on["tokenizer"] = tokenizer_folders[turn]
        seeds.append(Seed(seed, own, stands_on, trainings))
    return Plan([tokenizers, stage_bs], seeds)


def helper_preset(config: ConfigDict) -> str:
    """The preset of the runs that a run on the embedded data stands on."""
    spec = config.data.spec
    return spec if spec in ("tiny", "shapes64") else "shapes"


def _stand_on(
    wish: Wish,
    out: Path,
    name: str,
    given: Sequence[str],
    spec: str,
    overrides: Sequence[str] = (),
) -> tuple[list[str], list[Training]]:
    """Run folders of tokenizers, and those that are to be trained."""
    if given:
        return list(given), []
    turns = range(min(RETRAINED, len(wish.seeds)))
    if name == "low_tokenizer" and wish.tokenizers:
        turns = range(len(wish.tokenizers))
    if name == "tokenizer" and wish.low_tokenizers:
        turns = range(len(wish.low_tokenizers))
    configs = {turn: load_config(spec, overrides) for turn in turns}
    trained = [_training(out / f"{name}_{turn}", own, turn) for turn, own in configs.items()]
    return [str(training.workdir) for training in trained], trained


def _training(workdir: Path, config: ConfigDict, seed: int, **fields: str) -> Training:
    """A copy of a config with its seed and the runs it stands on; nothing is drawn meanwhile."""
    config = config.copy_and_resolve_references()
    config.seed = seed
    for name, value in fields.items():
        config[name] = value
    config.log.preview_every = 0
    config.checkpoint.keep = 1
    return Training(workdir, config.lock())
