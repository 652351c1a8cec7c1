"""launch/gke.sh: the JobSet it renders, against the schemas of JobSet and Kubernetes."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.launch

SCRIPT = Path(__file__).parents[2] / "launch" / "gke.sh"
REQUIRED = {
    "name": "bert",
    "image": "registry/bertjax:1",
    "accelerator": "tpu-v5-lite-podslice",
    "topology": "4x4",
}
FLAGS = ["--config=base", "--workdir=/mnt/bertjax/runs/base"]
EVERYTHING = [
    "--num_slices=2",
    "--claim=runs",
    "--service_account=trainer",
    "--namespace=research",
    "--spot",
    "--host_network",
]


def gke(command, *options, flags=FLAGS, **changes):
    given = [f"--{name}={value}" for name, value in (REQUIRED | changes).items() if value]
    return subprocess.run(
        [str(SCRIPT), command, *given, *options, "--", *flags], capture_output=True, text=True
    )


def render(*options, **changes):
    result = gke("render", *options, **changes)
    assert result.returncode == 0, result.stderr
    return yaml.safe_load(result.stdout)


def job(jobset):
    [replicated] = jobset["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def pod(jobset):
    return job(jobset)["template"]["spec"]


@pytest.mark.parametrize("options", [[], EVERYTHING], ids=["least", "everything"])
def test_the_jobset_fits_its_schema(options):
    """The models are generated from JobSet's OpenAPI schema; they drop fields they do not know."""
    models = pytest.importorskip(
        "kubeflow_trainer_api.models.jobset_v1alpha2_job_set",
        reason="the schema of JobSet: pip install kubeflow-trainer-api",
    )
    jobset = render(*options)
    assert models.JobsetV1alpha2JobSet.from_dict(jobset).to_dict() == jobset


@pytest.mark.parametrize("options", [[], EVERYTHING], ids=["least", "everything"])
def test_its_jobs_fit_the_schema_of_kubernetes(options):
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate",
        reason="the schemas of Kubernetes: pip install kubernetes-validate",
    )
    document = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}}
    document["spec"] = job(render(*options))
    kubernetes_validate.validate(document, "1.32", strict=True)


def test_it_keeps_the_rules_that_the_schema_does_not_say():
    """Those of JobSet's webhook, and of the API server for Jobs with a podFailurePolicy."""
    jobset = render(*EVERYTHING)
    policy = jobset["spec"]["failurePolicy"]
    assert policy["restartStrategy"] in ("Recreate", "BlockingRecreate")
    for rule in policy["rules"]:
        assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
        assert rule["action"] in ("FailJobSet", "RestartJobSet")
        assert set(rule["onJobFailureReasons"]) <= {"BackoffLimitExceeded", "PodFailurePolicy"}
    names = [container["name"] for container in pod(jobset)["containers"]]
    for rule in job(jobset)["podFailurePolicy"]["rules"]:
        assert rule["action"] in ("FailJob", "Count", "Ignore", "FailIndex")
        assert ("onExitCodes" in rule) != ("onPodConditions" in rule)
        if "onExitCodes" in rule:
            codes = rule["onExitCodes"]
            assert codes["containerName"] in names
            assert codes["values"] == sorted(set(codes["values"]))
            assert 0 not in codes["values"]
    assert pod(jobset)["restartPolicy"] == "Never"


def what_happens(jobset, exit_code, disrupted=False):
    """Of a Pod's end, by the rules of Kubernetes (podFailurePolicy) and JobSet (failurePolicy)."""
    spec = job(jobset)
    reason = "BackoffLimitExceeded" if spec["backoffLimit"] == 0 else None
    for rule in spec["podFailurePolicy"]["rules"]:
        conditions = {c["type"] for c in rule.get("onPodConditions", [])}
        codes = rule.get("onExitCodes", {"values": []})["values"]
        if exit_code in codes or (disrupted and "DisruptionTarget" in conditions):
            reason = "PodFailurePolicy" if rule["action"] == "FailJob" else reason
            break
    for rule in jobset["spec"]["failurePolicy"]["rules"]:
        if reason in rule["onJobFailureReasons"]:
            return rule["action"]
    return "RestartJobSet"


def test_what_restarts_and_what_fails():
    jobset = render()
    for exit_code in (75, 134, 137, 143):
        assert what_happens(jobset, exit_code) == "RestartJobSet"
    for exit_code in (1, 2):
        assert what_happens(jobset, exit_code) == "FailJobSet"
        assert what_happens(jobset, exit_code, disrupted=True) == "RestartJobSet"
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 100


@pytest.mark.parametrize(
    ("topology", "options", "hosts", "chips"),
    [
        ("4x4", [], 4, 4),
        ("16x16", [], 64, 4),
        ("2x2x4", [], 4, 4),
        ("1x1", [], 1, 1),
        ("2x4", ["--chips_per_host=8"], 1, 8),
    ],
)
def test_one_pod_a_host(topology, options, hosts, chips):
    jobset = render(*options, topology=topology)
    assert job(jobset)["parallelism"] == job(jobset)["completions"] == hosts
    [container] = pod(jobset)["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert pod(jobset)["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology


def test_training_flags_arrive_as_they_are():
    flags = [*FLAGS, '--config.data.store=a "b" \\n #c: {d}', "--config.phases[0].num_steps=5"]
    result = gke("render", flags=flags)
    [container] = pod(yaml.safe_load(result.stdout))["containers"]
    assert container["command"] == ["python", "-m", "bertjax.train"]
    assert container["args"] == flags


@pytest.mark.parametrize(
    ("options", "changes", "named"),
    [
        ([], {"name": None}, "--name=NAME is missing"),
        ([], {"name": "Bert_1"}, "--name=Bert_1"),
        ([], {"image": None}, "--image=IMAGE is missing"),
        ([], {"accelerator": None}, "--accelerator=TYPE is missing"),
        ([], {"topology": "16"}, "--topology=16"),
        ([], {"topology": "3x3"}, "9 chips, which --chips_per_host=4 does not divide"),
        (["--num_slices=0"], {}, "--num_slices=0"),
        (["--claim=c"], {"flags": ["--config=base", "--workdir=/w"]}, "--workdir=/w is not below"),
        ([], {"flags": ["--workdir=/w"]}, "--config=RECIPE"),
        ([], {"flags": ["--config=base"]}, "--workdir=DIR"),
        ([], {"flags": ["--config=bse", "--workdir=/w"]}, "--config=bse: no recipe"),
        ([], {"flags": [*FLAGS, "--dry-run"]}, "--dry-run is not a training flag"),
        (["--nodes=3"], {}, "unknown option --nodes=3"),
    ],
)
def test_what_is_missing_or_wrong_is_named(options, changes, named):
    flags = changes.get("flags", FLAGS)
    changes = {name: value for name, value in changes.items() if name != "flags"}
    result = gke("render", *options, flags=flags, **changes)
    assert result.returncode == 2
    assert named in result.stderr
    assert result.stdout == ""
