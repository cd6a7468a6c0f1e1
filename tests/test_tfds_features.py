"""A folder of TFDS's runs no code of its own, in whatever way it names a class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import small_records

from paella_jax.config import ConfigError
from paella_jax.data.places import records_at
from paella_jax.data.tfds_features import OWN, check_features
from paella_jax.data.tfds_records import find_builder

EVIL = "module_of_the_folder.X"


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A data set whose features.json names a module beside it, and what that module writes."""
    place = Path(small_records.write("tfds", tmp_path / "t", 4, files=1))
    features = json.loads((place / "features.json").read_text())
    features["featuresDict"]["features"]["captions"]["pythonClassName"] = EVIL
    (place / "features.json").write_text(json.dumps(features))
    (place / "module_of_the_folder.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(place)
    return place, tmp_path / "ran"


def test_a_folder_cannot_name_its_own_module(prepared, tmp_path):
    place, ran = prepared
    words = f"features.json names the class '{EVIL}', whose module would be run"
    for call in (
        lambda: find_builder(str(place), ""),
        lambda: find_builder("captioned", str(tmp_path / "t")),
        lambda: find_builder("Captioned:1.0.0", str(tmp_path / "t")),
        lambda: records_at("--images", "tfds", str(place), captions=False),
    ):
        with pytest.raises(ValueError, match=words) as error:
            call()
        assert not isinstance(error.value, ConfigError) and "\n" not in str(error.value)
    assert not ran.exists()


LEGACY = {"type": OWN + "x.FeaturesDict", "content": {"a": {"type": EVIL, "content": {}}}}


@pytest.mark.parametrize(
    "content",
    [
        {"pythonClassName": EVIL},
        {"python_class_name": EVIL},
        LEGACY,
        {"pythonClassName": OWN + "x.Y", "jsonFeature": {"json": " " + json.dumps(LEGACY)}},
        {"pythonClassName": OWN + "x.Y", "a": [[{"type": "os.path.X"}]]},
        {"pythonClassName": OWN[:-1] + "_of_another.X"},
    ],
)
def test_every_way_to_name_a_class_is_seen(tmp_path, content):
    (tmp_path / "features.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"names the class '.*', whose module would be run"):
        check_features(tmp_path)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"a":' * 100_000, '{"a": "' + "[" * 100_000 + '"}']
)
def test_damaged_features_are_named(tmp_path, content):
    (tmp_path / "features.json").write_text(content)
    with pytest.raises(ValueError, match=r"features\.json cannot be read: .*prepare the data anew"):
        check_features(tmp_path)


def test_features_of_tfds_pass(tmp_path):
    check_features(tmp_path)  # has none
    fine = {"pythonClassName": OWN + "x.Y", "description": "{a} text", "featuresDict": {"type": {}}}
    (tmp_path / "features.json").write_text(json.dumps(fine))
    check_features(tmp_path)
