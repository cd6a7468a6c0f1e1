"""Blocks that every configuration shares, with their units and ranges."""

from __future__ import annotations

from ml_collections import ConfigDict


def base() -> ConfigDict:
    """Training, logging and checkpoint defaults; a family file adds its own blocks."""
    config = ConfigDict()
    config.method = ""  # an entry of paella_jax/registry.py
    config.preset = ""
    config.init_from = ""  # run folder to train on from; empty: from scratch
    config.seed = 0
    config.num_steps = 1000  # optimiser updates
    config.batch_size = 64  # images per update, over all devices and micro-batches
    config.precision = "float32"  # compute dtype: float32 or bfloat16 (slower on CPU)

    config.data = ConfigDict()
    _add_data(config.data)

    _add_optimiser(config)

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices per axis; one axis may be -1: all the rest
    config.mesh.fsdp = 1
    config.mesh.tensor = 1

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 1000  # steps
    config.checkpoint.keep = 3  # newest checkpoints kept; None: all (to average them offline)

    config.log = ConfigDict()
    config.log.every = 50  # steps between metric lines
    config.log.preview_every = 0  # steps between sample grids (one process); 0: only at the end
    config.log.preview_images = 16
    config.log.validation_images = 0  # held-back ones whose loss is written with each preview
    config.log.tensorboard = False  # needs the tensorboard extra
    config.log.wandb = ""  # project name; needs the wandb extra
    return config


def _add_data(data: ConfigDict) -> None:
    """Where images and captions are, and what is made of them (paella_jax/docs/data.md)."""
    data.source = "shapes"  # shapes (embedded), or what one of the next six fields implies
    data.folder = ""  # of images with captions
    data.image_file = ""  # one image, with its caption: the same every step
    data.shards = ""  # webdataset .tar files: a folder, a glob, or {0000..0099}
    data.array_record = ""  # ArrayRecord files, given as shards are
    data.parquet = ""  # parquet files, or Arrow files of `save_to_disk`, given as shards are
    data.tfds = ""  # a prepared data set of TFDS: its folder, or its name
    data.tfds_folder = ""  # where tfds looks for names; empty: TFDS's own folder
    data.validation_folder = ""  # empty: held back from the folder, as data/split.py says
    data.validation_files = ""  # of shards, array_record and parquet; empty: by names, or split
    data.training_split = "train"  # of tfds, also as in train[:90%]
    data.validation_split = ""  # of tfds; empty: validation or test where it has one, or split
    data.split = 0.05  # fraction held back where nothing else says what is
    data.split_seed = -1  # at least 0: chosen by names; -1: evenly spaced in their order
    data.split_column = "split"  # of a folder's table with captions, if it has one
    data.image_field = ""  # of array_record, parquet and tfds; empty: image, jpg, png, ...
    data.caption_field = ""  # of these, and of shards' json; empty: text, caption, ...
    data.caption = ""  # of image_file
    data.image_size = 32  # pixels, square; images are resized and cropped to it
    data.buckets = ()  # (height, width) pairs: images keep about their aspect ratio
    data.crop = "center"  # of images in training: center or random
    data.resize = 0  # pixels of their short side before the crop; 0: image_size
    data.flip = False  # mirror half of them (not where captions say left and right)
    data.draft = False  # decode JPEGs of four times the needed sides at a fraction: faster
    data.captions = True  # False: images alone, for a tokenizer
    data.caption_lines = False  # True: every line of a caption's text is one of several
    data.background = "white"  # behind transparent images: a colour's name or #rrggbb
    data.spec = "shapes"  # of the embedded source: tiny, single, shapes or shapes64
    data.size = 1_000_000  # index range of the embedded source
    data.encoded = ""  # --out of paella_jax.encode: arrays made beforehand, in place of images
    data.prefetch = 8  # batches prepared ahead
    data.threads = 2  # reading threads per process


def _add_optimiser(config: ConfigDict) -> None:
    """How parameters are updated, and which."""
    config.optim = ConfigDict()
    # adamw; adafactor: second moments per row and column, not per weight; muon: updates of matrices
    # made orthogonal.
    config.optim.kind = "adamw"
    config.optim.learning_rate = 1e-4  # peak
    config.optim.schedule = "constant"  # after warm-up: constant, or cosine to zero
    config.optim.decay_steps = 0  # at which the cosine ends; 0: num_steps
    config.optim.warmup_steps = 10_000  # linear, from zero
    config.optim.beta1 = 0.9  # adafactor with 0 keeps no momentum
    config.optim.beta2 = 0.999
    config.optim.epsilon = 1e-8  # of adamw
    config.optim.weight_decay = 0.01  # times the learning rate
    config.optim.decay_pattern = ""  # regex on paths: what decays; empty: all, as the reference
    config.optim.clip_norm = 1.0  # global norm; 0 switches clipping off
    config.optim.accumulation = 1  # micro-batches per update
    # In which type the devices' gradients are added up: float32, or compute (config.precision).
    config.optim.gradient_reduction = "float32"
    # Of the first moments: float32, or bfloat16, which saves 2 bytes a parameter.
    config.optim.momentum_precision = "float32"
    config.optim.ema_decay = 0.0  # 0: no moving average
    config.optim.ema_start = 0  # the average equals the parameters before this step

    config.lora = ConfigDict()  # with init_from: train low-rank changes of some layers only
    config.lora.rank = 0  # 0: every parameter is trained
    config.lora.alpha = 16.0  # a change is scaled by alpha / rank
    config.lora.pattern = (  # regex on the paths of the matrices to change
        r"^predictor/.*(in_kernel|attention/out/kernel|mapper/kernel"
        r"|conditioning/(text|clip_text|clip_image)/kernel|(query|key|value)/kernel)$"
    )


def add_kernels(model: ConfigDict) -> None:
    """How a network of convolutions and attention is computed (paella_jax/docs/speed.md)."""
    model.remat_keeps = "nothing"  # of a recomputed block: nothing, or its products
    model.attention = "auto"  # kernel: auto, xla, cudnn or flash
    model.attention_dropout = "probabilities"  # as published; output allows fused kernels
    model.depthwise = "auto"  # convolutions: auto, shifts or convolution


def add_generator(objective: ConfigDict) -> None:
    """What makes the random numbers of dropout (paella_jax/noise/generators.py)."""
    objective.dropout_generator = "auto"  # threefry, rbg, or rbg where there is an accelerator


def add_text(config: ConfigDict, kind: str) -> None:
    """The text encoder of a diffusion stage."""
    config.text = ConfigDict()
    config.text.kind = kind  # clip (frozen, of `folder`), joint (fields below) or none
    config.text.folder = ""  # CLIP text model in Hugging Face layout
    config.text.max_length = 128  # bytes including the end token; longer captions are cut
    config.text.pad_to = 120  # static length
    config.text.attention = "xla"  # kernel of frozen encoders, of images too: xla, cudnn or auto
    config.text.width = 96
    config.text.units = "bytes"  # or words, which have fixed vectors: lengths above are then words
    config.text.values_from = (
        "states"  # what attention reads of a word: its state in the text, or words
    )
    config.text.num_layers = 2
    config.text.num_heads = 4
    config.text.hidden_dim = 256
    config.text.dropout = 0.0


def train_on(config: ConfigDict) -> None:
    """Makes a preset a later phase: `init_from` must be given, its text encoder stays.

    The published phases went on with their optimiser, rate and average; here these begin anew, so
    the warm-up is only as long as the moments need, and averaging starts at once.
    """
    config.optim.warmup_steps = 100
    config.optim.ema_start = 0
    for name in set(config.text) - {"attention"}:
        config.text[name] = None


def add_diffusion(config: ConfigDict) -> None:
    """Schedule, objective and sampler of a diffusion stage."""
    config.schedule = ConfigDict()  # noise/gaussian.py
    config.schedule.offset = 0.008
    config.schedule.scaler = 1.0  # above or below 1: more noise at the same t
    config.schedule.minimum = 1e-4

    config.objective = ConfigDict()
    config.objective.minimum_t = 0.001
    config.objective.stretch = 1.08  # 7.5 % of the samples at t = 1
    add_generator(config.objective)
    config.objective.loss_weight = "none"  # none, p2 or p2_paper, see noise/gaussian.py

    config.sampler = ConfigDict()
    config.sampler.stepper = "ddpm"  # ddpm, ddim or dpm++


def add_evaluation(config: ConfigDict) -> None:
    """How many captions `evaluate` draws, and what it marks them by."""
    config.evaluation = ConfigDict()
    config.evaluation.num_images = 256  # per split
    config.evaluation.batch_size = 64
    config.evaluation.groups = ""  # of own images: a field, or words of captions (docs/scores.md)


def on_a_pod(config: ConfigDict) -> None:
    """How the released models' presets run: on a folder of images, parameters over all devices."""
    config.data.source = "folder"
    config.data.threads = 16  # enough images per second: docs/data.md 3
    config.precision = "bfloat16"
    config.mesh.fsdp = -1
    config.mesh.data = 1
    config.checkpoint.every = 5000
    config.log.preview_every = 10_000
    config.log.validation_images = 2048


def shapes_text(config: ConfigDict) -> None:
    """A small encoder of whole words for the embedded captions (docs/results.md 1)."""
    config.text.units = "words"
    config.text.values_from = "words"
    config.text.max_length = 48
    config.text.pad_to = 24
    config.text.width = 96
    config.text.num_heads = 4


def shapes_recipe(config: ConfigDict) -> None:
    """How the embedded data's text-to-image presets train: one budget for all families."""
    config.num_steps = 2600
    config.batch_size = 32  # more, smaller updates: captions are read after so many
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 150
    config.optim.beta2 = 0.98
    config.optim.ema_decay = 0.995
    config.checkpoint.every = 1000
    config.log.every = 50
    config.log.preview_every = 500
    config.log.preview_images = 32


def own_images(config: ConfigDict, size: int) -> None:
    """A user's captioned images on one machine: `--config.data.folder=X`, or another source."""
    config.data.source = "folder"
    config.data.image_size = size
    config.data.flip = False  # captions may tell left from right
    config.log.validation_images = 256


def own_text(config: ConfigDict) -> None:
    """A small encoder of whole words, trained along: captions of up to 31 words."""
    config.text.units = "words"
    config.text.values_from = "words"
    config.text.max_length = 32
    config.text.pad_to = 32
    config.text.width = 128
    config.text.hidden_dim = 384


def own_recipe(config: ConfigDict) -> None:
    """How the text-to-image presets of own images train: one budget for all token predictors.

    At 32 pixels all families together take about 34 minutes on two cores, scoring included
    (launch/icons.sh).
    """
    config.num_steps = 3000
    config.batch_size = 16
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 200
    config.optim.beta2 = 0.98
    config.optim.ema_decay = 0.998
    config.optim.learning_rate = 1e-3
    config.checkpoint.every = 1000
    config.log.every = 50
    config.log.preview_every = 1000


def tiny_recipe(config: ConfigDict) -> None:
    """The same for the `tiny` data, in a minute or two."""
    config.data.spec = "tiny"
    config.num_steps = 400
    config.text.width = 64
    config.text.hidden_dim = 128
    config.optim.warmup_steps = 50
    config.optim.ema_decay = 0.98
    config.checkpoint.every = 200
    config.log.preview_every = 0
    config.evaluation.num_images = 64
    config.evaluation.batch_size = 32
