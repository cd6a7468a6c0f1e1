"""Runs of the hub: its cache, what is downloaded, uploads, and one line for every failure.

Nothing is asked of a network: the cache is a folder of the hub's layout, the hub an object.
"""

from __future__ import annotations

import fnmatch
import importlib
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import small
from huggingface_hub import constants, errors

import paella_jax
from paella_jax import evaluate, serve
from paella_jax.config import UserError
from paella_jax.files.tensors import ConversionError
from paella_jax.runs.checkpoint import CheckpointError
from paella_jax.runs.manifest import MANIFEST
from paella_jax.sharing.folder import of_run, write_shared
from paella_jax.sharing.hub import HubError, download, is_name, push_to_hub

pytestmark = pytest.mark.devices(8)
COMMITS = {"main": "a" * 40, "v2": "b" * 40}
NAME = "someone/circles"
# The hub's client has had several HTTP libraries.
HTTP = importlib.import_module(errors.HfHubHTTPError.__bases__[0].__module__.partition(".")[0])


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    run = small.untrained(folder / "run", small.small_paella(sampler__num_steps=2))
    return write_shared(folder / "circles", {"": of_run(run)})


def put(cache: Path, folder: Path, files, commit: str, branch: str = "main") -> Path:
    """Files of a repository as the hub's cache holds them: blobs, and links to them by commit."""
    place = cache / f"models--{NAME.replace('/', '--')}"
    for name in files:
        blob, link = place / "blobs" / name.replace("/", "_"), place / "snapshots" / commit / name
        for above in (blob.parent, link.parent, place / "refs"):
            above.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, blob)
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(blob, link.parent))
    (place / "refs" / branch).write_text(commit)
    return place / "snapshots" / commit


class FakeHub:
    """What is used of `huggingface_hub.HfApi`, for one repository."""

    def __init__(self, cache: Path, folder: Path, more=()) -> None:
        self.cache, self.folder, self.error = cache, folder, None
        found = (f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())
        self.files, self.taken, self.calls = sorted([*found, *more]), [], []

    def _answer(self, name: str) -> None:
        if self.error is not None:
            raise self.error

    def model_info(self, name, revision=None):
        self._answer(name)
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=f) for f in self.files])

    def snapshot_download(self, name, revision=None, allow_patterns=None):
        self._answer(name)
        fits = lambda file: any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns)
        taken = [file for file in self.files if fits(file)]
        self.taken += [file for file in taken if file not in self.taken]
        commit = COMMITS.get(revision or "main", revision)
        branch = revision if revision in COMMITS else "main"
        return str(put(self.cache, self.folder, taken, commit, branch))

    def create_repo(self, name, **options):
        self._answer(name)
        self.calls.append(("create", name, options))

    def upload_folder(self, **options):
        self.calls.append(("upload", sorted(os.listdir(options["folder_path"])), options))


@pytest.fixture
def hub(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    fake = FakeHub(tmp_path / "cache", shared, more=["weights.fp16.bin", ".gitattributes"])
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **_: fake)
    monkeypatch.chdir(tmp_path)
    return fake


def response(status):
    return HTTP.Response(status, request=HTTP.Request("GET", "https://huggingface.co"))


def test_a_name_loads_with_the_files_that_are_needed(hub, shared):
    pipe = paella_jax.load(NAME)
    manifest = paella_jax.runs.manifest.read_manifest(shared)
    assert set(hub.taken) == {MANIFEST, *manifest["files"]} and "README.md" not in hub.taken
    images = pipe("a red circle", seed=1, output_type="array")
    same = paella_jax.load(shared)("a red circle", seed=1, output_type="array")
    np.testing.assert_array_equal(images, same)
    # Again from the cache, as asked for or as there is no network.
    hub.error = HTTP.ConnectError("no route")
    assert paella_jax.load(NAME, offline=True).origin.folder.name == COMMITS["main"]


def test_evaluate_takes_a_name_and_writes_elsewhere(hub, tmp_path, monkeypatch):
    """Into `scores`, which is checked first: nothing is written into the hub's cache."""
    asked = []
    monkeypatch.setattr(evaluate, "setup_jax", lambda: None)
    monkeypatch.setattr(evaluate, "evaluate_on_shapes", asked.append)
    monkeypatch.setattr("sys.argv", ["evaluate", "--checkpoint", NAME])
    evaluate.main()
    ((arguments,), taken) = asked, len(hub.taken)
    assert arguments.checkpoint.endswith(COMMITS["main"]) and arguments.out == "scores"
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("sys.argv", ["evaluate", "--checkpoint", "a/b", "--out", "file/below"])
    with pytest.raises(UserError, match="file"):
        evaluate.main()
    hub.error = HTTP.ConnectError("no route")
    monkeypatch.setattr("sys.argv", ["evaluate", "--checkpoint", "owner/other"])
    with pytest.raises(HubError, match="owner/other"):
        evaluate.main()
    assert len(hub.taken) == taken


def test_the_page_takes_a_name_beside_a_run(hub, shared, monkeypatch):
    """It is shown by the name that was given, not by its place in a cache."""
    words = ["serve", "--checkpoint", NAME, "--checkpoint", str(shared.parent / "run")]
    monkeypatch.setattr("sys.argv", words)
    flags = serve.parse()
    monkeypatch.setattr(serve, "has_gradio", lambda: True)
    serve.check(flags)
    assert not hub.taken, "the port and all flags are checked first"
    serve.find_runs(flags)
    assert [run.name for run in serve.load_runs(flags)] == ["circles", "run"]
    hub.error = HTTP.ConnectError("no route")
    monkeypatch.setattr("sys.argv", ["serve", "--checkpoint", "owner/other"])
    with pytest.raises(HubError, match="owner/other"):
        serve.find_runs(serve.parse())


def test_without_a_network_the_cache_serves_and_says_so(hub, capsys):
    folder = download(NAME)
    hub.error = HTTP.ConnectError("no route")
    assert download(NAME) == folder
    assert "no network: someone/circles is taken from the hub's cache" in capsys.readouterr().err


def test_a_revision(hub):
    assert download(NAME, "v2").name == COMMITS["v2"]
    assert download(NAME, "v2", offline=True).name == COMMITS["v2"]
    assert download(NAME, COMMITS["v2"], offline=True).name == COMMITS["v2"]
    with pytest.raises(HubError, match="revision v3 of someone/circles is neither"):
        download(NAME, "v3", offline=True)


@pytest.mark.parametrize(
    "error, words",
    [
        (lambda: errors.RepositoryNotFoundError("404", response=response(404)),
         "neither a folder here nor a repository on the hub that you may see; check the spelling"),
        (lambda: errors.GatedRepoError("403", response=response(403)),
         "gated: accept its terms at https://huggingface.co/someone/circles, then log in"),
        (lambda: errors.RevisionNotFoundError("404", response=response(404)),
         "someone/circles has no revision 'v9'"),
        (lambda: errors.HfHubHTTPError("500 Server Error\n\nbusy", response=response(500)),
         "the hub refused someone/circles: 500 Server Error"),
        (lambda: errors.OfflineModeIsEnabled("HF_HUB_OFFLINE=1"), r"cannot be downloaded \(no net"),
        (lambda: HTTP.ConnectTimeout("slow"), "check the path, or load it once with a network"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_one_line(hub, error, words):
    hub.error = error()
    with pytest.raises(HubError, match=words) as caught:
        paella_jax.load(NAME, revision="v9")
    assert "\n" not in str(caught.value)


def test_a_damaged_download(hub):
    folder = download(NAME)
    blob = (folder / "weights.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is cut short"):
        paella_jax.load(NAME, offline=True)
    (folder / "frozen" / "vqgan.json").unlink()
    with pytest.raises(CheckpointError, match=r"vqgan\.json is missing"):
        paella_jax.load(NAME, offline=True)


def test_what_is_no_name(hub, tmp_path):
    (tmp_path / "runs" / "x").mkdir(parents=True)
    assert is_name("a/b") and not is_name("runs/x") and not is_name("/a/b") and not is_name("a/b/c")
    with pytest.raises(CheckpointError, match="is not a run folder"):
        paella_jax.load("runs/x")
    with pytest.raises(ValueError, match="revision='v2' is for OWNER/NAME on the hub, not for run"):
        paella_jax.load("runs/x", revision="v2")
    assert not hub.taken


def test_a_folder_is_pushed_whole(hub, shared):
    told = push_to_hub(shared, NAME, private=True)
    assert told == f"https://huggingface.co/{NAME}"
    create, upload = hub.calls
    assert create == ("create", NAME, {"private": True, "exist_ok": True})
    assert upload[1] == sorted(os.listdir(shared)) and upload[2]["repo_id"] == NAME


def test_a_pipeline_is_saved_and_pushed(hub, shared):
    paella_jax.push_to_hub(paella_jax.load(shared), NAME, message="First")
    _, upload = hub.calls
    assert {MANIFEST, "weights.safetensors", "README.md"} <= set(upload[1])
    assert upload[2]["commit_message"] == "First"
    assert not Path(upload[2]["folder_path"]).exists()


def test_what_cannot_be_pushed(hub, shared, tmp_path):
    for source, name, words in (
        (shared, "circles", "'circles' is no name of a repository on the hub; give OWNER/NAME"),
        (tmp_path, NAME, "is no shared folder; write one: python -m paella_jax.export"),
    ):
        with pytest.raises(HubError, match=words):
            push_to_hub(source, name)
    for source, name, options, words in (
        (3, NAME, {}, "source=3 must be a path, as a text or a Path, or a loaded pipeline"),
        (shared, 3, {}, "3 is no name of a repository on the hub; give OWNER/NAME"),
        (shared, NAME, {"private": "yes"}, "private='yes' must be True or False"),
        (shared, NAME, {"message": 3}, "message=3 must be a text"),
    ):
        with pytest.raises((ValueError, HubError), match=words):
            paella_jax.push_to_hub(source, name, **options)
    damaged = shutil.copytree(shared, tmp_path / "damaged")
    (damaged / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json is cut short"):
        push_to_hub(damaged, NAME)
    for error, words in (
        (errors.LocalTokenNotFoundError("no token"), "not logged in to the hub: log in with"),
        (HTTP.ConnectError("x"), f"no network: .* was not uploaded to {NAME}; try again"),
        (errors.RepositoryNotFoundError("403", response=response(403)), "that you may see"),
    ):
        hub.error = error
        with pytest.raises(HubError, match=words):
            push_to_hub(shared, NAME)
    assert not hub.calls


BIG = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
       "model.safetensors.index.json", "tokenizer.json"]  # fmt: skip
PARTS = {name: ["diffusers", "X"] for name in ("transformer", "vqvae", "text_encoder", "tokenizer")}


def repository(hub, tmp_path, files):
    """A repository with these files: texts, or "" for what would be large."""
    hub.folder, hub.files = tmp_path / "repository", sorted(files)
    for name, content in files.items():
        file = hub.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content or "large")


@pytest.mark.parametrize(
    "files, words, taken",
    [
        ({"README.md": "", "weights.bin.gz": ""}, "holds no run", []),
        ({"paella_v3.pt": ""}, r"holds paella_v3\.pt alone", []),
        ({"config.json": '{"model_type": "llama"}'} | dict.fromkeys(BIG, ""),
         r"config\.json that is no run's of this library", ["config.json"]),
        ({"model_index.json": '{"_class_name": "StableDiffusionXLPipeline", "unet": ["a", "b"]}',
          "unet/config.json": "{}", "unet/diffusion_pytorch_model.safetensors": "",
          "sd_xl_base_1.0.safetensors": ""},
         "holds a StableDiffusionXLPipeline, which is not supported", ["model_index.json"]),
    ],
)  # fmt: skip
def test_what_is_no_run_is_refused_before_it_is_downloaded(hub, tmp_path, files, words, taken):
    repository(hub, tmp_path, files)
    with pytest.raises((HubError, ConversionError), match=words):
        paella_jax.load(NAME)
    assert hub.taken == taken


def test_of_a_published_repository_its_own_parts_are_downloaded(hub, tmp_path):
    index = json.dumps({"_class_name": "AmusedPipeline"} | PARTS)
    needed = ["model_index.json", "tokenizer/vocab.json", "transformer/config.json",
              "transformer/diffusion_pytorch_model.safetensors"]  # fmt: skip
    others = ["data/huge_annotations.json", "training_state.json", "other.safetensors",
              "transformer/diffusion_pytorch_model.fp16.safetensors"]  # fmt: skip
    repository(hub, tmp_path, dict.fromkeys([*needed, *others], "") | {needed[0]: index})
    with pytest.raises((UserError, ValueError, OSError)):  # it is not whole
        paella_jax.load(NAME)
    assert sorted(hub.taken) == needed


@pytest.mark.parametrize(
    "given, words",
    [
        ((NAME, {"revision": 3}), "revision=3 must be a text"),
        ((NAME, {"offline": "yes"}), "offline='yes' must be True or False"),
        ((3, {}), "directory=3 must be a path, as a text or a Path: a run folder, or OWNER/NAME"),
        ((None, {}), "directory=None must be a path"),
    ],
)
def test_what_load_is_given_has_its_types(hub, given, words):
    directory, options = given
    with pytest.raises(ValueError, match=words):
        paella_jax.load(directory, **options)
    assert not hub.taken
