#!/usr/bin/env python3
"""A cloud in a folder: stands in for `gcloud` where there is no Google Cloud to test with.

CLOUD/slice.json is the one slice, with its state, CLOUD/workers/N the home of one of its
NUM_WORKERS workers, on which ssh runs commands for real, CLOUD/buckets/NAME a bucket, CLOUD/calls a
line for each call. CLOUD/fails, if it is there, has the verb of one call that fails, and
CLOUD/says_nothing lets one look at the workers lose its output.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

CLOUD = Path(os.environ["CLOUD"])
NUM_WORKERS = int(os.environ["NUM_WORKERS"])
COMING = ["WAITING_FOR_RESOURCES", "PROVISIONING"]


def state(kind):
    """What a look at the slice says; one that is coming gets on with each look."""
    path = CLOUD / "slice.json"
    resource = json.loads(path.read_text()) if path.exists() else {}
    if resource.get("kind") != kind:
        sys.exit("ERROR: (gcloud) NOT_FOUND: Resource was not found")
    now = resource["state"].pop(0) if len(resource["state"]) > 1 else resource["state"][0]
    path.write_text(json.dumps(resource))
    return now


def create(kind):
    if (CLOUD / "slice.json").exists():
        sys.exit("ERROR: (gcloud) ALREADY_EXISTS")
    for number in range(NUM_WORKERS):
        (CLOUD / "workers" / str(number)).mkdir(parents=True)
    ready = "ACTIVE" if kind == "queued-resources" else "READY"
    resource = {"kind": kind, "state": [*COMING, ready]}
    (CLOUD / "slice.json").write_text(json.dumps(resource))


def take_workers_away():
    """As a preemption does it: no signal that a process could act on, and nothing left."""
    for pid in CLOUD.glob("workers/*/bertjax/pid"):
        with contextlib.suppress(ProcessLookupError):  # it had ended
            os.killpg(os.getpgid(int(pid.read_text())), signal.SIGKILL)
    shutil.rmtree(CLOUD / "workers")


def delete(kind):
    state(kind)
    if (CLOUD / "workers").exists():
        take_workers_away()
    (CLOUD / "slice.json").unlink()


def workers(which):
    homes = sorted((CLOUD / "workers").iterdir())
    return homes if which == "all" else homes[: int(which) + 1]


def ssh(command, which):
    silent = CLOUD / "says_nothing"
    if silent.exists() and "status" in command:
        silent.unlink()
        return
    for home in workers(which):
        environment = os.environ | {"HOME": str(home)}
        result = subprocess.run(["bash", "-c", command], cwd=home, env=environment)
        if result.returncode:
            sys.exit(result.returncode)


def scp(files, target, which):
    for home in workers(which):
        for file in files:
            shutil.copy(file, home / target.partition(":")[2])


def main():
    with (CLOUD / "calls").open("a") as calls:
        print(*sys.argv[1:], file=calls)
    if sys.argv[1:3] == ["config", "get-value"]:
        return
    if sys.argv[1:3] == ["storage", "rsync"]:
        source, target = sys.argv[3:5]
        bucket = source.replace("gs://", f"{CLOUD}/buckets/")
        shutil.copytree(bucket, target, dirs_exist_ok=True)
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("words", nargs="+")
    for name in ("command", "worker", "node", "zone", "project", "format"):
        parser.add_argument(f"--{name}")
    arguments, _ = parser.parse_known_args()
    _, _, kind, verb, *names = arguments.words
    fails = CLOUD / "fails"
    if fails.exists() and fails.read_text() == verb:
        fails.unlink()
        sys.exit("ERROR: (gcloud) UNAVAILABLE: try again")
    if verb == "create":
        create(kind)
    elif verb == "describe":
        print(state(kind))
    elif verb == "ssh":
        ssh(arguments.command, arguments.worker)
    elif verb == "scp":
        scp(names[:-1], names[-1], arguments.worker)
    elif verb == "delete":
        delete(kind)
    else:
        sys.exit(f"unknown verb {verb}")


if __name__ == "__main__":
    main()
