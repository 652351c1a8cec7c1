"""A command to supervise: `child.py DIR STEP...`, one STEP for each time it is started.

A STEP is an exit code; `kill`: dies of SIGKILL; `wait`: waits for SIGTERM, saves and exits with 75;
`finish`: waits for SIGTERM and exits with 0. With `+` behind it, the step makes a new checkpoint
first. Each start adds a line to DIR/starts, or, of one of several processes, to DIR/startsN with N
from the variable CHILD_NUMBER.
"""

import os
import signal
import sys
import time
from pathlib import Path

folder = Path(sys.argv[1].removeprefix("--workdir="))
starts = folder / f"starts{os.environ.get('CHILD_NUMBER', '')}"
folder.mkdir(exist_ok=True)
starts.touch()
count = len(starts.read_text().splitlines())
step = sys.argv[2 + count]


def save():
    (folder / "checkpoints" / f"step_{count + 1:08d}").mkdir(parents=True, exist_ok=True)


def save_and_exit(*_):
    time.sleep(0.3)  # long enough for a supervisor that does not wait to be seen
    save()
    sys.exit(75)


if step == "wait":
    signal.signal(signal.SIGTERM, save_and_exit)
elif step == "finish":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with starts.open("a") as lines:
    lines.write(f"{os.getpid()}\n")
if step.endswith("+"):
    save()
if step.startswith("kill"):
    os.kill(os.getpid(), signal.SIGKILL)
if step in ("wait", "finish"):
    time.sleep(60)
sys.exit(int(step.rstrip("+")))
