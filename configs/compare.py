"""What `paella_jax.compare` trains and measures, at an equal budget.

    python -m paella_jax.compare --config configs/compare.py:quick --out runs/compare

Presets: `shapes` (the full setting, a night on two idle cores with `--workers 2`), `quick` (an hour
and a half, likewise), `tiny` (for continuous integration: no quality to speak of) and `folder`, on
a user's own captioned images:

    python -m paella_jax.compare --config compare:folder --config.data.folder=IMAGES --out DIR
"""

from __future__ import annotations

from ml_collections import ConfigDict

from paella_jax.config import choose, sibling

common = sibling(__file__, "common")


def get_config(preset: str = "shapes") -> ConfigDict:
    """Builds one preset. Raises ConfigError for an unknown one."""
    presets = {"shapes": lambda config: None, "quick": _quick, "tiny": _tiny, "folder": _folder}
    fill = choose(__file__, presets, preset)
    config = ConfigDict()
    config.preset = preset
    config.tokenizer = ""  # run folder of a trained tokenizer; empty: train the next line's
    config.tokenizer_config = "configs/vqgan.py:shapes"
    config.training = "configs/paella.py:shapes"  # recipe that all cells share
    config.overrides = ()  # of that recipe, "a.b=value"
    # Of that recipe and of the tokenizer's alike; None: as it stands there.
    config.data = ConfigDict(dict.fromkeys(common.base().data))
    config.seeds = (0, 1, 2, 3, 4)

    config.cells = ConfigDict()  # every combination is a cell
    config.cells.corruptions = ("uniform", "mask")
    config.cells.networks = ("unet", "transformer", "uvit")
    config.cells.samplers = ("random", "confidence")
    config.cells.mask_density = "cosine"  # each corruption with the density it was published with
    config.cells.uniform_density = "uniform"

    _add_variants(config)
    _add_budget(config)
    _add_measure(config)
    fill(config)
    return config


def _add_variants(config: ConfigDict) -> None:
    """Ablations: cells trained otherwise in one respect (comparison/variants.py)."""
    # Each is network, corruption, sampler and overrides.
    config.variants = ConfigDict()
    muse, paella = ("transformer", "mask", "confidence"), ("unet", "uniform", "random")
    masked = ("unet", "mask", "random")
    config.variants.uniform_density = (*muse, ("objective.density=uniform",))
    config.variants.corrupted_loss = (*paella, ("objective.loss_positions=corrupted",))
    config.variants.full_loss = (*masked, ("objective.loss_positions=all",))
    # Masks instead of Paella's random tokens, and nothing else.
    config.variants.masks_alone = (
        *masked, ("objective.density=uniform", "objective.loss_positions=all")
    )  # fmt: skip
    config.variants.no_level = (*muse, ("transformer.time_width=0",))
    config.variants.without_level = (*paella, ("model.patterns=('CA',)",))


def _add_budget(config: ConfigDict) -> None:
    """How much is trained, and how learning rates are searched."""
    config.budget = ConfigDict()
    # flops: equal forward FLOPs x images; seconds: equal time of training on this machine;
    # parameters: equal images, and widths changed to the reference's number of parameters.
    config.budget.kind = "flops"
    config.budget.reference = "unet"  # network that sees `images`
    config.budget.images = 64_000  # of which four times are the largest budget
    config.budget.seconds = 900.0  # of each training, for kind=seconds
    config.budget.multiples = (2.0, 4.0)  # every cell is trained on such budgets too

    # The same search for every network and corruption; no rates: learning_rate as it stands below.
    config.search = ConfigDict()
    config.search.rates = (5e-4, 1e-3, 2e-3, 4e-3)
    config.search.seeds = (0, 1)
    config.search.fraction = 0.25  # of each training, its beginning

    config.learning_rate = ConfigDict()  # per network: peak, where nothing is searched
    config.learning_rate.unet = 2e-3
    config.learning_rate.transformer = 1e-3
    config.learning_rate.uvit = 2e-3


def _add_measure(config: ConfigDict) -> None:
    """What is drawn and scored."""
    config.measure = ConfigDict()
    config.measure.steps = (4, 8, 12, 18, 24)
    config.measure.main_steps = 12  # where guidance is chosen, and diversity and speed measured
    config.measure.images = 512  # per split and step count
    config.measure.distinct = True  # captions: none twice
    config.measure.batch_size = 64  # of sampling
    config.measure.guidance = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0, (1.0, 3.0))  # a pair rises, as MUSE's
    config.measure.temperature = ((1.0, 1.0), (0.7, 0.3))  # first and last step's
    # Noise on the confidences of masked cells: none to MaskGIT's 4.5 (for 256 tokens).
    config.measure.choice_temperature = ((0.0, 0.0), (0.5, 0.0), (2.0, 0.0), (4.5, 0.0))
    config.measure.tuning_images = 256  # captions of each split apart from the measured ones
    config.measure.diversity_prompts = 64
    config.measure.diversity_images = 4  # of each prompt
    config.measure.token_images = 512  # for the cross-entropy of corrupted tokens
    config.measure.real_images = 1024  # for the Fréchet distance; of other captions
    # Of own images: the network whose features mark them, and its weights where a file is needed.
    config.measure.features = "efficientnet"
    config.measure.features_file = ""
    config.measure.classifier_steps = 500
    config.measure.speed_rounds = 5
    config.measure.speed_images = 64
    config.measure.speed_guidance = 2.0  # for all cells alike


def _quick(config: ConfigDict) -> None:
    """Captions as whole words and less of everything, so that it fits into an evening."""
    config.overrides = (
        "text.units=words", "text.values_from=words", "text.max_length=24", "text.pad_to=24",
        "batch_size=16",  # captions are read after so many updates, whatever their size
    )  # fmt: skip
    config.seeds = (0, 1, 2)
    # Enough to tell which rates are too low; lower ones are tried whole (docs/results.md 5).
    config.search.fraction = 0.15
    config.budget.images = 32_000
    config.budget.multiples = ()
    config.budget.seconds = 120.0
    config.measure.steps = (4, 8, 12, 24)
    config.measure.images = 256
    config.measure.guidance = (1.0, 2.0, 4.0, (1.0, 3.0))
    config.measure.choice_temperature = ((0.0, 0.0), (0.5, 0.0), (2.0, 0.0))
    config.measure.tuning_images = 64
    config.measure.diversity_prompts = 16
    config.measure.token_images = 256
    config.measure.speed_rounds = 3


def _folder(config: ConfigDict) -> None:
    """Own images: a drawn one is right if its caption's own image is the nearest of 64."""
    config.tokenizer_config = "configs/vqgan.py:folder32"
    config.training = "configs/paella.py:folder32"
    config.seeds = (0, 1, 2)
    config.budget.images = 192_000
    config.budget.multiples = ()
    config.measure.images = 256
    config.measure.tuning_images = 128
    config.measure.token_images = 256
    config.measure.speed_rounds = 3


def _tiny(config: ConfigDict) -> None:
    config.tokenizer_config = "configs/vqgan.py:tiny"
    config.training = "configs/paella.py:tiny"
    config.seeds = (0,)
    config.search.rates = ()
    config.variants = ConfigDict()
    config.budget.multiples = ()
    config.budget.images = 320
    config.budget.seconds = 2.0
    config.measure.steps = (2, 4)
    config.measure.main_steps = 4
    config.measure.images = 16
    config.measure.distinct = False  # there are 48 scenes in all
    config.measure.guidance = (1.0, 2.0)
    config.measure.choice_temperature = ((2.0, 0.0),)
    config.measure.temperature = ((0.7, 0.3),)
    config.measure.tuning_images = 8
    config.measure.diversity_prompts = 4
    config.measure.diversity_images = 2
    config.measure.token_images = 16
    config.measure.real_images = 64
    config.measure.classifier_steps = 20
    config.measure.speed_rounds = 2
    config.measure.speed_images = 8
