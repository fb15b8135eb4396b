"""`examples/kuberay-rayjob.yaml` and the image it runs: the fields that a RayJob has, and what must agree.

KubeRay's own schema is a megabyte; the fields named here are those of its API reference (`ray.io/v1`), and of
Kubernetes' for pods, as far as the file uses them. Kubernetes drops a field that it does not know without a
word.
"""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from tests.support.command_lines import check_maskmill, commands_in

ROOT = Path(__file__).parents[2]
FILE = ROOT / "examples" / "kuberay-rayjob.yaml"
IMAGE = (ROOT / "examples" / "Dockerfile").read_text()

POD = {"spec": {
    "restartPolicy", "terminationGracePeriodSeconds", "nodeSelector", "tolerations", "containers",
    "initContainers", "volumes", "serviceAccountName", "securityContext",
}}  # fmt: skip
CONTAINER = {"name", "image", "imagePullPolicy", "command", "args", "ports", "env", "envFrom", "resources"}
CONTAINER |= {"volumeMounts", "securityContext", "lifecycle"}
JOB = {
    "entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "rayClusterSpec",
    "submissionMode", "runtimeEnvYAML", "activeDeadlineSeconds", "suspend", "metadata", "submitterConfig",
    "submitterPodTemplate", "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId",
    "managedBy", "deletionStrategy", "clusterSelector",
}  # fmt: skip
CLUSTER = {
    "rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec",
    "workerGroupSpecs", "gcsFaultToleranceOptions", "headServiceAnnotations", "managedBy", "suspend",
}  # fmt: skip
AUTOSCALER = {
    "idleTimeoutSeconds",
    "upscalingMode",
    "resources",
    "image",
    "imagePullPolicy",
    "env",
    "version",
}
HEAD = {"rayStartParams", "template", "headService", "serviceType", "enableIngress"}
WORKERS = {"groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "rayStartParams", "template"}
WORKERS |= {"idleTimeoutSeconds", "scaleStrategy", "suspend"}
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
QUANTITY = re.compile(r"\d+(\.\d+)?(m|[kMGT]i?)?")


@pytest.fixture
def job():
    [job] = yaml.safe_load_all(FILE.read_text())
    return job


def groups(job):
    cluster = job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def containers(job):
    return [container for group in groups(job) for container in group["template"]["spec"]["containers"]]


def test_it_is_a_rayjob_and_has_no_field_that_there_is_not(job):
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert set(job) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(job["spec"]) <= JOB
    cluster = job["spec"]["rayClusterSpec"]
    assert set(cluster) <= CLUSTER
    assert set(cluster["autoscalerOptions"]) <= AUTOSCALER
    assert set(cluster["headGroupSpec"]) <= HEAD
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= WORKERS
    for group in groups(job):
        assert set(group["template"]) == set(POD)
        assert set(group["template"]["spec"]) <= POD["spec"]
    for container in containers(job):
        assert set(container) <= CONTAINER


def test_what_kubernetes_requires_is_there_and_of_its_type(job):
    names = [job["metadata"]["name"], *(container["name"] for container in containers(job))]
    names += [group["groupName"] for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]]
    assert all(NAME.fullmatch(name) for name in names)
    for group in groups(job):
        for name, value in group["rayStartParams"].items():
            assert isinstance(value, str), f"{name}: a map of strings, so numbers in quotes"
    for container in containers(job):
        assert container["image"]
        for entry in container.get("env", ()):
            assert isinstance(entry["value"], str)
        for amounts in container["resources"].values():
            assert all(QUANTITY.fullmatch(amount) for amount in amounts.values())


def test_the_head_runs_no_shard_and_the_gpu_pods_come_and_go(job):
    cluster = job["spec"]["rayClusterSpec"]
    head, [workers] = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert not any(
        "nvidia.com/gpu" in c["resources"]["limits"] for c in head["template"]["spec"]["containers"]
    )
    assert workers["minReplicas"] == workers["replicas"] == 0 < workers["maxReplicas"]
    [container] = workers["template"]["spec"]["containers"]
    requests, limits = container["resources"]["requests"], container["resources"]["limits"]
    assert requests["nvidia.com/gpu"] == limits["nvidia.com/gpu"] == workers["rayStartParams"]["num-gpus"]
    assert limits["cpu"] == workers["rayStartParams"]["num-cpus"]


def test_a_job_that_failed_goes_on_and_leaves_no_cluster_behind(job):
    assert job["spec"]["backoffLimit"] > 0
    assert job["spec"]["shutdownAfterJobFinishes"] is True


def test_the_token_is_asked_for_everywhere_or_nowhere(job):
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    told = {entry["name"] for container in containers(job) for entry in container.get("env", ())}
    assert not told & {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}, "KubeRay sets them, from authOptions"


def test_every_pod_has_the_credentials_and_nothing_secret_is_in_the_file(job):
    secrets = [[source["secretRef"]["name"] for source in c["envFrom"]] for c in containers(job)]
    assert secrets == [["maskmill-storage"]] * 2
    assert "create secret generic maskmill-storage" in FILE.read_text()


def test_the_entrypoint_joins_the_cluster_and_fits_its_pods(job):
    [workers] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    program, *words = shlex.split(job["spec"]["entrypoint"])
    settings = check_maskmill(words)
    assert program == "maskmill"
    assert words[words.index("--ray") + 1] == "auto"
    assert int(words[words.index("--workers") + 1]) == workers["maxReplicas"]
    assert str(settings.threads_per_worker) == workers["rayStartParams"]["num-cpus"]
    assert str(int(settings.cluster.gpus_per_worker)) == workers["rayStartParams"]["num-gpus"]


def test_the_image_is_of_the_same_versions_and_holds_the_weights(job):
    version = job["spec"]["rayClusterSpec"]["rayVersion"]
    assert re.search(r"^FROM rayproject/ray:([\d.]+)-py312$", IMAGE, re.M)[1] == version
    assert f"ray=={version}" in IMAGE
    images = {container["image"] for container in containers(job)}
    assert len(images) == 1
    assert f"--tag {images.pop()} " in IMAGE
    assert ["models", "get", "sam_vit_h"] in list(commands_in(IMAGE.replace("RUN ", ""), "maskmill"))
