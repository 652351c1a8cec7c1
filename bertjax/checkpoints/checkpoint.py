"""Checkpoints: written in the background, sealed, and verified before they are used.

Layout: `WORKDIR/checkpoints/step_00001234/{params/, opt_state/, progress.json, config.json,
SEAL.json}`. A save is written to a hidden directory, hashed and sealed (`sealing`), and only then
gets its name (`checkpoint_directory`). In a bucket it is written under its final name, and counts
once it is sealed (`checkpoint_bucket`). This is the only file that imports orbax. See
docs/design/checkpoint.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import itertools
import json
import logging
import os
import re
import threading
import types
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from bertjax.checkpoints import checkpoint_bucket, sealing
from bertjax.checkpoints.checkpoint_directory import listed
from bertjax.checkpoints.named_leaves import from_dicts, to_dicts
from bertjax.checkpoints.orbax_noise import quiet_orbax
from bertjax.checkpoints.sealing import CheckpointError
from bertjax.parallel.partition import path_name
from bertjax.storage.bucket import BucketPath, as_path

__all__ = ["Checkpoint", "CheckpointError", "CheckpointStore", "resolve"]

Tree = Any  # nested dicts of arrays (or of jax.ShapeDtypeStruct)

_log = logging.getLogger(__name__)
# Each save has its own directory, because a failed one may still be writing to its directory.
_attempts = itertools.count()
_BARRIER_TIMEOUT_MS = 1_200_000  # as long as orbax waits for a write
_NO_CHECKPOINT, _FAILED = -1, -2  # what process 0 tells the others instead of a step


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: every file has the size and checksum of the seal."""

    path: Path | BucketPath
    step: int
    progress: dict[str, Any]
    config: dict[str, Any]

    def restore_params(self, abstract: Tree | None = None) -> Tree:
        """Restores the parameters, on any number of devices, whatever number saved them.

        Args:
            abstract: jax.ShapeDtypeStruct for each parameter. A leaf with a sharding becomes a
                jax.Array with it, one without a numpy array. None: all as numpy arrays.

        Raises:
            CheckpointError: paths, shapes or dtypes differ from `abstract`; lists them.
        """
        return _restore(self.path / "params", abstract)

    def restore_opt_state(self, abstract: Tree | None = None) -> Tree:
        """Restores the optimizer state; like `restore_params`, but for any structure.

        The result has the structure of `abstract`; without it, nested dicts by the names on disk
        (see `named_leaves`).
        """
        folder = self.path / "opt_state"
        if abstract is None:
            return _restore(folder, None)
        try:
            return from_dicts(_restore(folder, to_dicts(abstract)), abstract)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}; a run with an optimizer of your own needs the same one to resume"
            ) from error


def resolve(path: Path | BucketPath | str) -> Checkpoint:
    """The verified checkpoint of a path; renames and removes nothing.

    Args:
        path: one checkpoint, or a workdir or its `checkpoints` folder for the newest intact one.

    Raises:
        CheckpointError: there is none, or none that is intact.
    """
    return _open(checkpoint_bucket.find(_absolute(path)))


class CheckpointStore(contextlib.AbstractContextManager["CheckpointStore"]):
    """The checkpoints of one run. The caller holds the workdir's lock (`workdir_lock`).

    With several processes, each makes the same calls in the same order, on one shared workdir.
    Process 0 seals, renames and removes.
    """

    def __init__(
        self,
        workdir: Path | BucketPath | str,
        keep: int,
        before_seal: Callable[[], None] = lambda: None,
    ):
        """Opens the store and removes what killed saves left behind.

        Args:
            workdir: the checkpoints are in its folder `checkpoints`, which is made if missing.
            keep: number of newest checkpoints that stay; 0 = all.
            before_seal: called by process 0, in the background, before a save counts; its
                exception fails the save.

        Raises:
            CheckpointError: the folder cannot be made or cleaned.
        """
        self._checkpoints = checkpoint_bucket.open_directory(_absolute(workdir) / "checkpoints")
        self.directory = self._checkpoints.path
        self._before_seal = before_seal
        self._keep = keep
        self.protected_steps: Collection[int] = ()  # checkpoints that are never removed
        self.last_saved: int | None = None  # the newest step that was saved whole or found sound
        self._thread: threading.Thread | None = None
        self._error: CheckpointError | None = None
        try:
            self._checkpoints.make()
            if jax.process_index() == 0:
                self._checkpoints.remove_unfinished()
        except OSError as error:
            raise CheckpointError(f"{self.directory}: cannot be used: {error}") from error
        quiet_orbax()
        # Not compressed: zstd saves 8 % of the bytes and doubles the time.
        arrays = functools.partial(ocp.PyTreeCheckpointHandler, use_compression=False)
        self._writer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(params=arrays(), opt_state=arrays()),
            # Otherwise a save that is refused at once may still make directories afterwards.
            async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
        )
        self._barrier = ocp.multihost.get_barrier_sync_fn()  # does nothing in a single process

    def latest(self) -> Checkpoint | None:
        """The newest intact checkpoint; None if the run never finished a save.

        Newer ones that are corrupt are renamed to `unsound_step_*`, with a warning that names each
        file and its fault.

        Raises:
            CheckpointError: there are or were checkpoints and none is intact, so the run would
                start over.
        """
        self.wait()
        path, error, answer = None, None, _NO_CHECKPOINT
        if jax.process_index() == 0:
            try:
                path = self._checkpoints.newest_sound()
            except Exception as caught:
                error, answer = caught, _FAILED
        if jax.process_count() > 1:
            if path is not None:
                answer = sealing.read_seal(path)["step"]
            answer = int(ocp.multihost.broadcast_one_to_all(np.asarray(answer, np.int32)))
            path = self._checkpoints.step_path(answer) if answer >= 0 else None
        if error is not None:
            raise error
        if answer == _FAILED:
            raise CheckpointError(f"{self.directory}: process 0 found no intact checkpoint")
        checkpoint = _open(path) if path else None
        self.last_saved = checkpoint.step if checkpoint else None
        return checkpoint

    def save(
        self,
        step: int,
        params: Tree,
        opt_state: Tree,
        progress: dict[str, Any],
        config: dict[str, Any],
    ) -> None:
        """Starts to save; returns when the arrays may be donated or overwritten.

        Waits for the previous save, if that is still being written. The checkpoint is complete when
        `last_saved` is its step, or `wait` returns.

        Args:
            step: must be above every step saved so far.
            params: nested dicts of arrays.
            opt_state: any tree of arrays; {} = parameters to start from, not to resume.
            progress: JSON: step, phase, position in the stream, versions, hashes.
            config: JSON: the run's configuration.

        Raises:
            CheckpointError: this save could not start, or the previous one failed.
        """
        self.wait()
        try:
            newest = max(self._checkpoints.finished_steps(), default=-1)
        except OSError as error:
            self._fail(step, error)
            self.wait()  # raises it
        if step <= newest:
            raise CheckpointError(
                f"{self.directory}: step {step} cannot be saved, step {newest} is there already "
                "and steps only grow; resume from it or choose another --workdir"
            )
        texts = {"progress.json": _to_json(progress), "config.json": _to_json(config)}
        trees = {"params": params, "opt_state": to_dicts(opt_state)}
        items = ocp.args.Composite(
            **{name: ocp.args.PyTreeSave(tree) for name, tree in trees.items() if tree}
        )
        unfinished = self._checkpoints.unfinished_path(step, next(_attempts))
        try:
            self._writer.save(_for_orbax(unfinished), args=items)
        except Exception as error:
            self._fail(step, error)
            self.wait()  # raises it
        self._thread = threading.Thread(
            target=self._finish, args=(step, unfinished, texts), name=f"finish_step_{step}"
        )
        self._thread.start()

    def wait(self) -> int | None:
        """Waits until no save is in flight; returns `last_saved`.

        Raises:
            CheckpointError: the save failed; its partial output is removed, older checkpoints stay.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self.last_saved

    def close(self) -> None:
        """Waits for the save in flight, then frees the writer's threads.

        Raises:
            CheckpointError: as `wait`.
        """
        try:
            self.wait()
        finally:
            self._writer.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        try:
            self.close()
        except CheckpointError as save_error:
            if error is None:
                raise
            _log.error("%s", save_error)  # the error that ends the block is raised

    def _finish(self, step: int, unfinished: Path | BucketPath, texts: dict[str, bytes]) -> None:
        """Background thread: waits for orbax, seals, gives the checkpoint its name, prunes."""
        try:
            self._writer.wait_until_finished()
            try:
                if jax.process_index() == 0:
                    for name, content in texts.items():
                        (unfinished / name).write_bytes(content)
                    self._before_seal()
                    self._checkpoints.finish(unfinished, step)
            finally:
                self._barrier(key=f"bertjax_finish_step_{step}", timeout_ms=_BARRIER_TIMEOUT_MS)
            if not self._checkpoints.is_finished(step):
                raise CheckpointError("process 0 could not finish it; see its log")
        except Exception as error:
            self._fail(step, error)
            return
        self.last_saved = step
        if jax.process_index() == 0 and self._keep > 0:
            try:
                self._checkpoints.prune(self._keep, self.protected_steps)
            except OSError as error:
                _log.warning("an old checkpoint could not be removed: %s", error)

    def _fail(self, step: int, error: Exception) -> None:
        """Removes the partial output and stores the error that `wait` will raise."""
        if jax.process_index() == 0:
            self._checkpoints.remove_failed_save()
        reason, advice = str(error) or repr(error), ""
        # Tensorstore's errors are not OSErrors, and have the number in their text.
        found = re.search(r"os_error_code='(\d+)'", reason)
        code = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
        if code:
            reason = os.strerror(code)
        if code in (errno.ENOSPC, errno.EDQUOT):
            advice = (
                f". Make room in {self.directory} or lower checkpoint.keep, then run the same "
                "command again"
            )
        newest = "none" if self.last_saved is None else self._checkpoints.step_path(self.last_saved)
        self._error = CheckpointError(
            f"the checkpoint of step {step} was not saved: {reason}. Newest good checkpoint: "
            f"{newest}{advice}"
        )
        self._error.__cause__ = error


def _to_json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _absolute(path: Path | BucketPath | str) -> Path | BucketPath:
    path = as_path(path)
    return path if isinstance(path, BucketPath) else path.resolve()


def _for_orbax(path: Path | BucketPath) -> epath.Path:
    return path.as_epath() if isinstance(path, BucketPath) else epath.Path(path)


def _open(path: Path | BucketPath) -> Checkpoint:
    return Checkpoint(
        path=path,
        step=sealing.read_seal(path)["step"],
        progress=json.loads((path / "progress.json").read_bytes()),
        config=json.loads((path / "config.json").read_bytes()),
    )


def _restore(folder: Path | BucketPath, abstract: Tree | None) -> Tree:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        is_there = folder.is_dir()  # orbax cannot save a tree without arrays
        tree = reader.handler.metadata(_for_orbax(folder)).tree if is_there else {}
        saved = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
        target = saved if abstract is None else abstract
        _check_fit(folder, _by_path(saved), _by_path(target))
        if not is_there:
            return {}
        return reader.restore(
            _for_orbax(folder),
            args=ocp.args.PyTreeRestore(target, restore_args=jax.tree.map(_how, target)),
        )


def _how(leaf: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)


def _by_path(tree: Tree) -> dict[str, str]:
    """{"pooler/kernel": "float32 (768, 768)", ...}."""
    return {
        path_name(path): f"{np.dtype(leaf.dtype).name} {tuple(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _check_fit(folder: Path | BucketPath, saved: dict[str, str], wanted: dict[str, str]) -> None:
    differences = [
        *(f"missing: {path} {wanted[path]}" for path in sorted(wanted.keys() - saved.keys())),
        *(f"unexpected: {path} {saved[path]}" for path in sorted(saved.keys() - wanted.keys())),
        *(
            f"different: {path} is {saved[path]}, expected {wanted[path]}"
            for path in sorted(saved.keys() & wanted.keys())
            if saved[path] != wanted[path]
        ),
    ]
    if differences:
        raise CheckpointError(
            f"{folder} does not fit: {listed(differences, 20)}. Compare the configuration with "
            "the checkpoint's config.json"
        )
