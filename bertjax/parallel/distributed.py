"""Several processes as one run: how they find each other, agree, and end when one is lost.

Each process calls the same functions in the same order. Facts that only one process knows (a
signal, its clock, its memory, its disk) are agreed on before any process acts on them.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import secrets
import sys
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bertjax.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, BertjaxError, ConfigError
from bertjax.storage.bucket import BucketPath

_LOG = logging.getLogger(__name__)

# A process without a heartbeat for this time is dead; the others then end within the same time.
HEARTBEAT_SECONDS = 30
START_SECONDS = 600  # to wait for the others at the start: machines of a slice start one by one
_LOSS = re.compile(
    "gloo|nccl|heartbeat|coordination service|unavailable|socket closed|connection (reset|refused)",
    re.IGNORECASE,
)


class PeerLostError(BertjaxError, RuntimeError):
    """Another process of the run is gone or never came; the same command resumes the run."""

    exit_code = EXIT_PREEMPTED

    def __init__(self, reason: object):
        super().__init__(
            f"another process of this run is gone: {reason}\n"
            "run the same command again on all machines to resume"
        )


@contextlib.contextmanager
def connected(
    coordinator_address: str = "", num_processes: int = 0, process_id: int = -1
) -> Iterator[None]:
    """Joins the other processes of the run; the `with` block needs all of them.

    Without arguments the processes are found as `jax.distributed.initialize` finds them: on Cloud
    TPU, GKE, Slurm and Open MPI, or by JAX_COORDINATOR_ADDRESS; there may be none. Call it before
    any other function of JAX.

    Args:
      coordinator_address: HOST:PORT of process 0.
      num_processes: processes of the run.
      process_id: number of this process, from 0.

    Raises:
      ConfigError: some of the three are given and others not, or they contradict each other.
      PeerLostError: not all processes came, or an error in the block means that one is gone.
    """
    _connect(coordinator_address, num_processes, process_id)
    several = jax.process_count() > 1
    try:
        yield
    except (ValueError, RuntimeError) as error:
        # JaxRuntimeError is a RuntimeError; some of its statuses are raised as ValueError.
        if several and not isinstance(error, BertjaxError) and _LOSS.search(str(error)):
            raise PeerLostError(error) from error
        raise


def _connect(coordinator_address: str, num_processes: int, process_id: int) -> None:
    """Joins the other processes, if there are any; see `connected`."""
    given = {
        "--coordinator_address": bool(coordinator_address),
        "--num_processes": num_processes > 0,
        "--process_id": process_id >= 0,
    }
    if any(given.values()):
        missing = [name for name, is_given in given.items() if not is_given]
        if missing:
            raise ConfigError(
                f"{', '.join(missing)} is missing: a run of several processes that are started by "
                "hand needs --coordinator_address, --num_processes and --process_id"
            )
        if process_id >= num_processes:
            raise ConfigError(
                f"--process_id={process_id} is not below --num_processes={num_processes}: "
                "processes are counted from 0"
            )
        if ":" not in coordinator_address:
            raise ConfigError(
                f"--coordinator_address={coordinator_address} has no port; expected HOST:PORT"
            )
        _LOG.info(
            "process %d of %d: waiting for the others at %s, for %d s at most",
            process_id,
            num_processes,
            coordinator_address,
            START_SECONDS,
        )
    # `preemption` handles signals; JAX's own handler would swallow them.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address or None,
            num_processes or None,
            process_id if process_id >= 0 else None,
            # By default a manually started process has all devices of its machine.
            cluster_detection_method="deactivate" if coordinator_address else None,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except ValueError as error:
        if "coordinator_address should be defined" in str(error):
            return  # no cluster: a run of one process
        raise
    except jax.errors.JaxRuntimeError as error:
        raise PeerLostError(f"the processes of the run did not find each other: {error}") from error


def end(exit_code: int) -> typing.NoReturn:
    """Ends a command that trains, at once if a normal exit would wait.

    After a signal, a normal exit would wait for the step or the compiler. After an error, it would
    wait for the other processes.
    """
    if exit_code in (EXIT_PREEMPTED, EXIT_INTERRUPTED) or (
        exit_code and jax.distributed.is_initialized()
    ):
        leave(exit_code)
    sys.exit(exit_code)


def leave(exit_code: int) -> typing.NoReturn:
    """Ends this process at once; a normal exit would wait for the other processes.

    The others notice within `HEARTBEAT_SECONDS` and end too.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


class Agreement:
    """Decisions that all processes take together: yes if any of them says yes."""

    def __init__(self, mesh: Mesh):
        """Compiles the reduction; with a single process the answer is its own."""
        self._alone = jax.process_count() == 1
        self._mesh = mesh
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(
            lambda votes: votes.any(axis=0),
            out_shardings=NamedSharding(mesh, PartitionSpec()),
        )
        self._asked: jax.Array | None = None

    def now(self, *answers: bool) -> tuple[bool, ...]:
        """Whether any process says yes, for each of several questions; waits for all of them."""
        return answers if self._alone else tuple(np.asarray(self._ask(answers)).tolist())

    def soon(self, *answers: bool) -> tuple[bool, ...]:
        """As `now`, without waiting: the answer of the previous call.

        So the devices do not wait. Each process must ask at every step. A single process gets its
        own answers at once.
        """
        if self._alone:
            return answers
        before, self._asked = self._asked, self._ask(answers)
        return (False,) * len(answers) if before is None else tuple(np.asarray(before).tolist())

    def _ask(self, answers: tuple[bool, ...]) -> jax.Array:
        votes = jax.make_array_from_callback(
            (self._mesh.size, len(answers)), self._sharding, lambda _: np.array([answers])
        )
        return typing.cast(jax.Array, self._any(votes))


def smallest(value: int) -> int:
    """The smallest value, over all processes, of a number up to 2^62."""
    if jax.process_count() == 1:
        return value
    halves = np.array([value >> 31, value & (2**31 - 1)], np.int32)
    parts = multihost_utils.process_allgather(halves).astype(np.int64)
    return int(((parts[:, 0] << 31) + parts[:, 1]).min())


def check_alike(what: Mapping[str, str]) -> None:
    """Checks that all processes were started with the same values.

    Args:
      what: texts by name, the same names everywhere: the recipe, hashes, versions.

    Raises:
      ConfigError: in every process, naming what differs and where.
    """
    if jax.process_count() == 1:
        return
    mine = [np.frombuffer(hashlib.sha256(v.encode()).digest(), np.int32) for v in what.values()]
    everyones = multihost_utils.process_allgather(np.stack(mine))
    different = {
        name: [i for i in range(len(everyones)) if (everyones[i, n] != everyones[0, n]).any()]
        for n, name in enumerate(what)
    }
    lines = [
        f"the {name} of process {', '.join(map(str, processes))} is not that of process 0"
        for name, processes in different.items()
        if processes
    ]
    if lines:
        raise ConfigError(
            "; ".join(lines) + ": start all processes with the same command, versions and data"
        )


def check_shared(workdir: Path | BucketPath) -> None:
    """Checks that all processes see the same workdir, which is made if missing.

    Raises:
      ConfigError: in every process, naming the processes that see another folder.
    """
    if jax.process_count() == 1:
        return
    marker = workdir / ".shared"
    nonce = np.array([secrets.randbits(31)], np.int32)
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        marker.write_text(str(nonce[0]))
    nonce = multihost_utils.broadcast_one_to_all(nonce)
    seen = marker.is_file() and marker.read_text() == str(int(nonce[0]))
    seen_by = multihost_utils.process_allgather(np.array([seen], np.int32))[:, 0]
    if jax.process_index() == 0:
        marker.unlink(missing_ok=True)
    blind = np.flatnonzero(seen_by == 0)
    if len(blind):
        raise ConfigError(
            f"--workdir={workdir} is not the same folder for all processes: process "
            f"{', '.join(map(str, blind))} does not see what process 0 writes there. Use a folder "
            "on storage that all machines share, or gs://BUCKET/FOLDER"
        )


def wait_for_all(name: str) -> None:
    """Returns when all processes have reached this point."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
