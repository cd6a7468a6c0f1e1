"""launch/setup.sh: which JAX is installed on which machine, with a fake pip."""

from __future__ import annotations

import pytest
from fake_commands import Fakes, small_checkout

# Any Python: `-c` asks its version, `-m venv` copies it, `-m pip` notes its arguments.
PYTHON = """#!/usr/bin/env bash
case "$1 $2" in
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip") printf '%s\\n' "$@" >>"$FAKE/pip" ;;
  "-m pytest") printf '%s\\n' "$@" >"$FAKE/pytest" ;;
esac
"""
NVIDIA = """#!/usr/bin/env bash
[ -n "$DRIVER" ] || exit 9
echo "$DRIVER"
"""
# Vendor and device of PCI cards, as /sys has them.
INTEL, GOOGLES_NETWORK = ("0x8086", "0x1237"), ("0x1ae0", "0x0042")
TPU_V5P, TPU_V6E = ("0x1ae0", "0x0062"), ("0x1ae0", "0x006f")


def put_card(folder, vendor, device):
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{vendor}\n")
    (folder / "device").write_text(f"{device}\n")


@pytest.mark.parametrize(
    "environment, devices, cards, extras",
    [
        ({"DRIVER": ""}, (), (), "[test]"),
        ({"DRIVER": "580.65.06"}, (), (), "[test,cuda13]"),
        ({"DRIVER": "550.54.15"}, (), (), "[test,cuda12]"),
        ({"DRIVER": ""}, ("accel0",), (), "[test,tpu]"),
        ({"DRIVER": ""}, ("vfio",), (), "[test]"),  # another machine's passed-through card
        ({"DRIVER": ""}, ("vfio",), (INTEL, TPU_V5P), "[test,tpu]"),
        ({"DRIVER": ""}, (), (TPU_V6E,), "[test,tpu]"),
        ({"DRIVER": ""}, (), (INTEL, GOOGLES_NETWORK), "[test]"),  # a VM of Google without a TPU
        ({"DRIVER": "550.54.15"}, (), (GOOGLES_NETWORK,), "[test,cuda12]"),
        ({"DRIVER": "", "TPU_ACCELERATOR_TYPE": "v5litepod-8"}, (), (), "[test,tpu]"),
        ({"DRIVER": "580.65.06", "PAELLA_EXTRA": ""}, (), (), "[test]"),
        ({"DRIVER": "", "PAELLA_EXTRA": "cuda12"}, (), (), "[test,cuda12]"),
    ],
)
def test_jax_fits_the_machine(tmp_path, environment, devices, cards, extras):
    fakes = Fakes(tmp_path / "fakes", **{"python3.11": PYTHON, "nvidia-smi": NVIDIA})
    (tmp_path / "dev").mkdir()
    for name in devices:
        (tmp_path / "dev" / name).touch()
    for number, ids in enumerate(cards):
        put_card(tmp_path / "pci" / f"0000:00:0{number}.0", *ids)
    root = small_checkout(tmp_path / "checkout")
    plain = {"PAELLA_DEVICES": str(tmp_path / "dev"), "PAELLA_VENV": str(root / ".venv")}
    plain["PAELLA_PCI"] = str(tmp_path / "pci")
    for _ in range(2):  # the second time there is nothing to do
        done = fakes.run("bash", root / "launch" / "setup.sh", **plain | environment)
        assert done.returncode == 0, done.stderr
    assert fakes.note("pip")[-1] == f"{root}{extras}"
    assert fakes.note("pip").count("install") == 1
    assert not done.stderr


def test_the_oldest_versions_have_an_environment_of_their_own(tmp_path):
    fakes = Fakes(tmp_path / "fakes", **{"python3.11": PYTHON, "nvidia-smi": NVIDIA})
    root = small_checkout(tmp_path / "checkout")
    (root / "tests").mkdir()
    (root / "tests" / "fast.txt").write_text("tests/test_a.py  # quick\n")
    done = fakes.run("bash", root / "launch" / "test.sh", "oldest", DRIVER="", PAELLA_EXTRA="")
    assert done.returncode == 0, done.stderr
    assert (root / ".venv-oldest" / ".installed").is_file()
    installed = fakes.note("pip")
    assert installed[installed.index("-c") + 1] == f"{root}/launch/oldest.txt"
    assert fakes.note("pytest")[-1] == "tests/test_a.py"
