"""Finding and comparing golden folders. A folder's role is read from its config.json."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from paella_jax.convert.wuerstchen import STAGE_B, STAGE_C
from paella_jax.models.compressor import Compressor, Stage, stages_of
from paella_jax.models.paella import Paella
from paella_jax.models.stage_b import StageB
from paella_jax.models.stage_c import StageC
from paella_jax.models.vqgan import VQGAN

OWN_COPY = Path(__file__).resolve().parent.parent / "golden"


def folders(root: str, accepts) -> list[Path]:
    """Folders below `root` whose config.json satisfies `accepts`."""
    found = []
    for config in sorted(Path(root).rglob("config.json")):
        if accepts(json.loads(config.read_text()), config.parent):
            found.append(config.parent)
    return found


def parametrize(metafunc, argument: str, accepts, in_own_copy: bool = True) -> None:
    """One test per golden folder, its id the folder's path below --golden.

    An empty list would skip its tests silently: in the repository's copy it is an error, unless
    that is known to be too large for it (`in_own_copy=False`).
    """
    if argument in metafunc.fixturenames:
        root = metafunc.config.getoption("golden")
        found = folders(root, accepts)
        if not found and in_own_copy and Path(root).resolve() == OWN_COPY:
            raise pytest.UsageError(
                f"{metafunc.module.__name__} finds no recording in {OWN_COPY}: nothing is compared"
            )
        ids = [str(f.relative_to(root)) for f in found]
        metafunc.parametrize(argument, found, ids=ids, scope="module")


def is_model(name: str):
    return lambda config, _: config.get("model") == name


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


class TrimmedRecording(dict[str, np.ndarray]):
    """Stored arrays by name. The repository's copy lacks some of the larger ones: a test that asks
    for one is skipped there. In any other folder (`--golden DIR`) it fails."""

    def __missing__(self, name: str) -> np.ndarray:
        pytest.skip(f"the repository's copy of the recording is without {name}")


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "io.npz") as stored:
        arrays = {name: stored[name] for name in stored}
    return TrimmedRecording(arrays) if OWN_COPY in folder.resolve().parents else arrays


def weights_of(folder: Path, name: str = "weights.safetensors") -> dict[str, np.ndarray]:
    if name == "grads.safetensors" and not (folder / name).exists():  # not every model has them
        pytest.skip(f"there are no recorded gradients in {folder.name}")
    return load_file(folder / name)


def channels_last(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, 1, -1)


def check_close(label: str, ours, theirs, atol: float = 5e-5, rtol: float = 5e-5) -> None:
    """Prints the largest absolute and relative error, then asserts closeness."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, f"{label}: shape {ours.shape} against {theirs.shape}"
    error = np.abs(ours - theirs)
    relative = error / np.maximum(np.abs(theirs), 1e-3)
    print(f"{label}: max_abs={error.max():.2e} max_rel={relative.max():.2e}")
    np.testing.assert_allclose(ours, theirs, atol=atol, rtol=rtol, err_msg=label)


def lead_of_the_nearest(points, codebook) -> np.ndarray:
    """[..., C] and [V, C] -> [...]: how much farther off the second nearest code is, in float64."""
    points, codebook = np.asarray(points, np.float64), np.asarray(codebook, np.float64)
    nearest = np.partition(np.square(points[..., None, :] - codebook).sum(-1), 1, axis=-1)
    return nearest[..., 1] - nearest[..., 0]


def same_where_clear(label: str, ours, theirs, lead, slack: float) -> np.ndarray:
    """Asserts equal choices wherever the recorded one leads by more than `slack`; returns where.

    Elsewhere rounding decides, in the reference as in ours.
    """
    clear = np.asarray(lead) > slack
    print(
        f"{label}: {clear.sum()} of {clear.size} choices are clear, smallest lead {lead.min():.1e}"
    )
    assert clear.any(), f"{label}: nothing can be compared"
    np.testing.assert_array_equal(np.asarray(ours)[clear], np.asarray(theirs)[clear], label)
    return clear


def check_gradients(label: str, ours: dict, theirs: dict, tolerance: float = 5e-5) -> None:
    """Per tensor, against that tensor's largest entry; all errors are listed at once."""
    assert set(ours) == set(theirs)
    worst, bad = 0.0, []
    for name, reference in theirs.items():
        scale = np.abs(reference).max()
        if name.endswith("in_proj_bias"):
            # The key part has no effect (softmax shift): its true gradient is zero, rounding only.
            third = reference.shape[0] // 3
            keep = np.r_[0:third, 2 * third : 3 * third]
            ours[name], reference = np.asarray(ours[name])[keep], reference[keep]
        error = np.abs(np.asarray(ours[name]) - reference).max() / max(scale, 1e-12)
        worst = max(worst, error)
        if error > tolerance:
            bad.append(f"{name}: {error:.2e}")
    print(f"{label}: {len(theirs)} gradients, worst relative to tensor maximum {worst:.2e}")
    assert not bad, f"{label}: gradients differ\n" + "\n".join(bad)


def same_tensors(ours: dict, theirs: dict) -> None:
    assert set(ours) == set(theirs)
    for name, reference in theirs.items():
        np.testing.assert_array_equal(ours[name], reference, err_msg=name)


def as_jax(tree):
    return jax.tree.map(jax.numpy.asarray, tree)


# --- our modules for the reference classes' recorded constructor arguments


def paella_of(constructor: dict) -> Paella:
    assert constructor["c_in"] == constructor["c_out"]  # the classifier starts as the token table
    fields = {
        "codebook_size": "num_labels", "token_width": "c_in", "patch_size": "patch_size",
        "time_width": "c_r", "cond_width": "c_cond", "widths": "c_hidden", "depths": "blocks",
        "num_heads": "nhead", "patterns": "level_config", "clip_tokens": "clip_seq_len",
        "kernel_size": "kernel_size", "dropout": "dropout", "self_attention": "self_attn",
    }  # fmt: skip
    as_ours = lambda value: tuple(value) if isinstance(value, list) else value
    return Paella(**{ours: as_ours(constructor[theirs]) for ours, theirs in fields.items()})


def vqgan_of(constructor: dict) -> VQGAN:
    renamed = {"c_hidden": "width", "c_latent": "latent_channels"}
    known = ("levels", "bottleneck_blocks", "c_hidden", "c_latent", "codebook_size", "scale_factor")
    return VQGAN(**{renamed.get(name, name): constructor[name] for name in known})


def stage_b_of(constructor: dict) -> StageB:
    """diffusers' argument names are the original's, but for self_attn."""
    attention = constructor.get("self_attn", True)
    return STAGE_B.foreign.read(constructor).clone(self_attention=attention)


def stage_c_of(constructor: dict) -> StageC:
    return STAGE_C.foreign.read(constructor)


def compressor_of(config: dict) -> Compressor:
    """For a recorded model's table of stages and widths, with the epsilons our network has."""
    assert config.get("backbone_bn_eps", 1e-3) == 1e-3
    assert config.get("mapper_bn_eps", 1e-5) == 1e-5
    return Compressor(
        variant=stages_of(tuple(Stage(*row) for row in config["stages"])),
        out_channels=config["c_latent"],
        head_channels=config["last_channel"],
    )
