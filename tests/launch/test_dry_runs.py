"""docs/launch/*.txt are what the launchers print with --dry-run; to write them anew:

python tests/launch/test_dry_runs.py
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.launch

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "docs" / "launch"

_POD = (
    "--name=bert --project=my-project --zone=us-west4-a --accelerator_type=v5litepod-16 --spot"
    " --store=gs://my-bucket/stores/wiki"
)
_POD_TRAINING = "--config=large --workdir=gs://my-bucket/runs/large --config.mesh.fsdp=4"
_SLICES = (
    "--name=bert --project=my-project --zone=us-west4-a --accelerator_type=v5litepod-16"
    " --num_slices=2 --mount=nfs://10.0.0.2/share --store=gs://my-bucket/stores/wiki"
)
_SLICES_TRAINING = "--config=large --workdir=/mnt/bertjax/runs/large"
_VM = (
    "--name=bert --project=my-project --zone=us-west4-a --accelerator_type=v5litepod-8 --no_queue"
    " --store=gs://my-bucket/stores/wiki"
)
_VM_TRAINING = "--config=base --workdir=runs/base"
_NAME = "--name=bert --project=my-project --zone=us-west4-a"
_GKE = (
    "--name=bert --image=us-docker.pkg.dev/my-project/images/bertjax:1"
    " --accelerator=tpu-v5-lite-podslice --topology=4x4 --num_slices=2 --claim=shared --spot"
)
_SHARED = (
    "--config=base --workdir=/mnt/bertjax/runs/base --config.data.store=/mnt/bertjax/stores/wiki"
)

DRY_RUNS = {
    "tpu_pod": [
        f"launch/tpu_vm.sh up --dry-run {_POD} -- {_POD_TRAINING}",
        f"launch/tpu_vm.sh log --dry-run {_NAME}",
        f"launch/tpu_vm.sh status --dry-run {_NAME}",
        f"launch/tpu_vm.sh watch --dry-run {_POD} -- {_POD_TRAINING}",
        f"launch/tpu_vm.sh stop --dry-run {_NAME}",
        f"launch/tpu_vm.sh delete --dry-run {_NAME}",
    ],
    "tpu_slices": [
        f"launch/tpu_vm.sh up --dry-run {_SLICES} -- {_SLICES_TRAINING}",
    ],
    "tpu_vm": [
        f"launch/tpu_vm.sh up --dry-run {_VM} -- {_VM_TRAINING}",
        f"launch/tpu_vm.sh log --dry-run {_NAME} --no_queue",
        f"launch/tpu_vm.sh delete --dry-run {_NAME} --no_queue",
    ],
    "gke": [
        f"launch/gke.sh start --dry-run {_GKE} -- {_SHARED}",
        "launch/gke.sh status --dry-run --name=bert",
        "launch/gke.sh log --dry-run --name=bert",
        "launch/gke.sh delete --dry-run --name=bert",
    ],
    "slurm": [
        "bash launch/slurm.sbatch --dry-run --config=base --workdir=/shared/runs/base"
        " --config.data.store=/shared/stores/wiki",
    ],
    "several_gpus": [
        "launch/supervise.sh --dry-run python -m bertjax.train --config=base --workdir=runs/base"
        " --config.data.store=stores/wiki",
    ],
}


def output(name):
    parts = []
    for command in DRY_RUNS[name]:
        result = subprocess.run(
            command.split(), capture_output=True, text=True, cwd=REPOSITORY, check=True
        )
        parts.append(f"$ {command}\n{result.stdout}")
    return "\n".join(parts)


@pytest.mark.parametrize("name", DRY_RUNS)
def test_the_docs_show_what_the_launchers_print(name):
    assert output(name) == (FOLDER / f"{name}.txt").read_text()


def test_every_file_there_is_written_by_this():
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(DRY_RUNS)


@pytest.mark.slow
def test_gcloud_knows_its_commands(tmp_path):
    """The real command line reads them, without running them."""
    if not shutil.which("gcloud"):
        pytest.skip("no gcloud: https://cloud.google.com/sdk/docs/install")
    texts = [path.read_text() for path in (*FOLDER.glob("*.txt"), FOLDER / "README.md")]
    lines = {line.strip() for text in texts for line in text.splitlines()}
    commands = sorted(line for line in lines if line.startswith("gcloud "))
    assert len(commands) > 15
    file = tmp_path / "commands.json"
    file.write_text(json.dumps([{"command_string": command} for command in commands]))
    result = subprocess.run(
        ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={file}"],
        capture_output=True,
        text=True,
        check=True,
    )
    answers = json.loads(result.stdout)
    assert len(answers) == len(commands)
    wrong = [answer for answer in answers if not answer["success"]]
    assert not wrong, [(answer["command_string"], answer["error_message"]) for answer in wrong]


def test_the_walk_throughs_show_commands_that_were_dry_run():
    def from_launcher(command):
        return " ".join(command[command.index("launch/") :].replace(" --dry-run", "").split())

    text = (FOLDER / "README.md").read_text().replace("\\\n", " ")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    shown = [from_launcher(line) for line in lines if re.search(r"launch/\w+\.(sh|sbatch)", line)]
    ran = [from_launcher(command) for commands in DRY_RUNS.values() for command in commands]
    assert len(shown) > 10
    assert set(shown) <= set(ran)


if __name__ == "__main__":
    for _name in DRY_RUNS:
        (FOLDER / f"{_name}.txt").write_text(output(_name))
