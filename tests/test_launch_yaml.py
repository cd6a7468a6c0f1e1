"""The files for GKE and SkyPilot: valid by schema, true in themselves, with the same arguments."""

from __future__ import annotations

import copy
import json
import re
import shlex
import shutil
import tomllib

import jsonschema
import kubernetes_validate
import pytest
import small
import yaml
from fake_commands import ARGUMENTS, Fakes, small_checkout

from paella_jax.config import load_config

LAUNCH = small.ROOT / "launch"
JOBSETS = ["jobset.yaml", "jobset_gpu.yaml"]
DOCKERFILE = (LAUNCH / "Dockerfile").read_text()


def fields(required: str = "", **properties) -> dict:
    """The schema of a mapping with these fields and no others."""
    return {"type": "object", "additionalProperties": False, "properties": properties,
            "required": required.split()}  # fmt: skip


def listed(items: dict) -> dict:
    return {"type": "array", "items": items, "minItems": 1}


TEXT, TRUTH, WHOLE = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
DNS_NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}
# Of jobset.x-k8s.io/v1alpha2, what is used here; a Job's template is Kubernetes' own.
FAILURE_RULE = fields(
    "name action",
    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    action={"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
    onJobFailureReasons=listed({"enum": ["BackoffLimitExceeded", "DeadlineExceeded",
                                         "FailedIndexes", "MaxFailedIndexesExceeded",
                                         "PodFailurePolicy"]}),
)  # fmt: skip
JOBSET = fields(
    "apiVersion kind metadata spec",
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=fields("name", name=DNS_NAME),
    spec=fields(
        "replicatedJobs",
        network=fields(enableDNSHostnames=TRUTH, subdomain=DNS_NAME,
                       publishNotReadyAddresses=TRUTH),
        failurePolicy=fields(
            maxRestarts=WHOLE,
            restartStrategy={"enum": ["Recreate", "BlockingRecreate", "InPlaceRestart"]},
            rules=listed(FAILURE_RULE),
        ),
        replicatedJobs=listed(fields("name template", name=DNS_NAME, replicas=WHOLE,
                                     template=fields("spec", spec={"type": "object"}))),
    ),
)  # fmt: skip
# Of SkyPilot's tasks, what is used here.
SKYPILOT = fields(
    "resources run",
    name=TEXT,
    num_nodes={"type": "integer", "minimum": 1},
    workdir=TEXT,
    resources=fields(
        "accelerators",
        accelerators={"type": "string", "pattern": "^[A-Za-z0-9-]+:[0-9]+$"},
        use_spot=TRUTH,
        disk_size=WHOLE,
        job_recovery=fields(
            max_restarts_on_errors=WHOLE,
            recover_on_exit_codes=listed({"type": "integer", "minimum": 0, "maximum": 255}),
        ),
    ),
    envs={"type": "object", "additionalProperties": TEXT,
          "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"}},
    file_mounts={"type": "object", "propertyNames": {"pattern": "^/"},
                 "additionalProperties": fields("name mode", name=TEXT, mode={
                     "enum": ["MOUNT", "COPY", "MOUNT_CACHED"]})},
    setup=TEXT,
    run=TEXT,
)  # fmt: skip


def read(name: str):
    return yaml.safe_load((LAUNCH / name).read_text())


def validate_jobset(jobset: dict) -> None:
    """Raises on an unknown or wrong field, of JobSet or in a Job's template."""
    jsonschema.validate(jobset, JOBSET)
    for job in jobset["spec"]["replicatedJobs"]:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]},
               **job["template"]}  # fmt: skip
        kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)


def container_of(jobset: dict) -> dict:
    (job,) = jobset["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    return container


@pytest.mark.parametrize("name", JOBSETS)
def test_jobsets_are_valid(name):
    validate_jobset(read(name))


@pytest.mark.parametrize(
    "path, value",
    [
        ("spec.failurePolicy.maxRestart", 3),
        ("spec.failurePolicy.rules.0.onJobFailureReasons", ["Whatever"]),
        ("spec.replicatedJobs.0.template.spec.completion", 4),
        ("spec.replicatedJobs.0.template.spec.parallelism", "four"),
        ("spec.replicatedJobs.0.template.spec.template.spec.containers.0.argument", []),
    ],
)
def test_broken_jobsets_are_refused(path, value):
    jobset = read("jobset.yaml")
    *parents, last = path.split(".")
    place = jobset
    for step in parents:
        place = place[int(step) if step.isdigit() else step]
    place[last] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        validate_jobset(jobset)


@pytest.mark.parametrize("name", JOBSETS)
def test_the_pods_of_a_jobset_find_each_other(name):
    jobset = read(name)
    spec, container = jobset["spec"], container_of(jobset)
    (job,) = spec["replicatedJobs"]
    pods = job["template"]["spec"]
    given = {one["name"]: one["value"] for one in container["env"]}
    (port,) = (one["containerPort"] for one in container["ports"])
    host = f"{jobset['metadata']['name']}-{job['name']}-0-0.{spec['network']['subdomain']}"
    assert given["JAX_COORDINATOR_ADDRESS"] == f"{host}:{port}"
    count = int(given["JAX_NUM_PROCESSES"])
    assert count == pods["completions"] == pods["parallelism"]
    assert pods["completionMode"] == "Indexed" and job["replicas"] == 1
    mounted = {one["name"] for one in container["volumeMounts"]}
    assert mounted == {one["name"] for one in pods["template"]["spec"]["volumes"]}


@pytest.mark.parametrize("name", JOBSETS)
def test_a_mistake_in_the_arguments_is_not_tried_again(name):
    jobset = read(name)
    (job,) = jobset["spec"]["replicatedJobs"]
    (rule,) = job["template"]["spec"]["podFailurePolicy"]["rules"]
    name = container_of(jobset)["name"]
    codes = {"containerName": name, "operator": "In", "values": [2]}
    assert rule == {"action": "FailJob", "onExitCodes": codes}
    (reaction,) = jobset["spec"]["failurePolicy"]["rules"]
    assert reaction["action"] == "FailJobSet"
    assert reaction["onJobFailureReasons"] == ["PodFailurePolicy"]
    # Any other end of a pod fails the job at once, which starts the whole set again.
    assert job["template"]["spec"]["backoffLimit"] == 0
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0


def test_a_tpu_slice_has_the_hosts_that_its_topology_needs():
    jobset = read("jobset.yaml")
    pods = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    topology = pods["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    rows, columns = map(int, topology.split("x"))
    chips = container_of(jobset)["resources"]["limits"]["google.com/tpu"]
    assert rows * columns == chips * pods["completions"]


def test_skypilot_is_valid_and_a_broken_one_refused():
    task = read("skypilot.yaml")
    jsonschema.validate(task, SKYPILOT)
    broken = copy.deepcopy(task)
    broken["resources"]["job_recovery"]["recover_on_exit_code"] = [143]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SKYPILOT)
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [143]


@pytest.mark.parametrize("name", [*JOBSETS, "skypilot.yaml"])
def test_the_arguments_are_those_of_a_preset(name):
    task = read(name)
    words = shlex.split(task["envs"]["ARGS"]) if "envs" in task else container_of(task)["args"]
    text = shlex.join(words).replace("=", " ", 1)
    (preset,) = re.findall(r"--config (\S+)", text)
    load_config(preset, [word for word in words if word.startswith("--config.")])
    assert any(word.startswith("--workdir") for word in words)


# What the files run


@pytest.fixture
def checkout(tmp_path):
    """(fake commands, a checkout where they are also the virtual environment's)."""
    fakes = Fakes(tmp_path / "fakes")
    folder = small_checkout(tmp_path / "checkout")
    (folder / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(fakes.bin / "python", folder / ".venv" / "bin")
    return fakes, folder


@pytest.mark.parametrize(
    "accelerator, variable", [("gpu", "XLA_FLAGS"), ("tpu", "LIBTPU_INIT_ARGS")]
)
def test_the_image_hands_its_arguments_on(checkout, accelerator, variable):
    fakes, folder = checkout
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.M)
    done = fakes.run(*json.loads(entry), *ARGUMENTS, cwd=folder, ACCELERATOR=accelerator)
    assert done.returncode == 0, done.stderr
    assert fakes.trained_with() == ARGUMENTS
    assert any(line.startswith(f"{variable}=--xla") for line in fakes.note("environment"))


def test_the_image_is_made_of_what_is_there():
    copied = [
        word for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.M) for word in line.split()
    ]
    assert {"paella_jax", "configs", "launch", "pyproject.toml"} <= set(copied)
    assert [name for name in copied if not (small.ROOT / name).exists()] == []
    project = tomllib.loads((small.ROOT / "pyproject.toml").read_text())["project"]
    assert {"cuda13", "tpu"} <= set(project["optional-dependencies"])
    assert (small.ROOT / project["readme"]).name in copied  # the build reads it


def test_skypilot_starts_a_process_per_node_with_the_arguments(checkout):
    fakes, folder = checkout
    node = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2",
            "SKYPILOT_NODE_RANK": "1", "ARGS": shlex.join(ARGUMENTS)}  # fmt: skip
    done = fakes.run("bash", "-c", read("skypilot.yaml")["run"], cwd=folder, **node)
    assert done.returncode == 0, done.stderr
    assert fakes.trained_with() == ARGUMENTS
    environment = fakes.note("environment")
    for line in (
        "JAX_COORDINATOR_ADDRESS=10.0.0.1:8476",
        "JAX_NUM_PROCESSES=2",
        "JAX_PROCESS_ID=1",
    ):
        assert line in environment


def test_local_hands_its_arguments_on(checkout):
    fakes, folder = checkout
    command = ["launch/local.sh", 1, "python", "-m", "paella_jax.train", *ARGUMENTS]
    done = fakes.run(*command, cwd=folder, LOGS=str(folder / "logs"))
    assert done.returncode == 0, done.stderr
    assert fakes.trained_with() == ARGUMENTS
