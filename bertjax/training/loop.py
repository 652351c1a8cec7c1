"""The training loop: `run(config, workdir)` trains, resumes, evaluates and saves."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bertjax.checkpoints.checkpoint import CheckpointStore
from bertjax.checkpoints.loadable_workdir import SCORES, keep_labels, keep_tokenizer
from bertjax.checkpoints.params_hash import params_sha256
from bertjax.config import Config
from bertjax.config.checks import validate
from bertjax.errors import EXIT_FAILED, BertjaxError
from bertjax.flops import mfu
from bertjax.models import check_backend, resolve_model
from bertjax.objectives.objective import abstract_batch
from bertjax.parallel import distributed
from bertjax.parallel.sharding import check_fits_mesh, make_mesh, replicated
from bertjax.reports.profiling import Profile
from bertjax.reports.start_up_times import StartUp
from bertjax.reports.throughput import Throughput
from bertjax.reports.tracker import EVALS, Tracker, read_lines, write_summary
from bertjax.storage.workdir_lock import lock_workdir
from bertjax.training.compilation import (
    bytes_a_device,
    compile_train_step,
    device_memory_bytes,
    estimate_step_seconds,
    may_not_fit,
)
from bertjax.training.compilation_cache import use_compilation_cache
from bertjax.training.input import DeviceBatches, gather_row_ids
from bertjax.training.job import Job, OpenJob
from bertjax.training.optimizer import Optimizer, make_optimizer, rate_table
from bertjax.training.phases import Phases
from bertjax.training.preemption import Preempted, PreemptionGuard, wait_until_ready
from bertjax.training.result import TrainingResult
from bertjax.training.since_logged import SinceLogged
from bertjax.training.start import abstract_state, devices_in_words, progress_record, start
from bertjax.training.step import TrainState
from bertjax.training.workdir import Workdir, open_workdir
from bertjax.version import __version__
from bertjax.weights.bertjax_checkpoint import workdir_of

_LOG = logging.getLogger(__name__)
# Where a step takes so long at least, by its bound, the host does not run ahead of it: little is
# gained, and a run that is asked to stop would first take another one.
_SLOW_STEP_SECONDS = 1.0


class TrainingDivergedError(BertjaxError, RuntimeError):
    """A loss or gradient is not finite; names the step and the last good checkpoint."""

    exit_code = EXIT_FAILED


def run(
    config: Config,
    workdir: str | Path,
    open_job: OpenJob,
    optimizer: Optimizer | None = None,
    *,
    shares_programs: bool = False,
) -> TrainingResult:
    """Trains until `config.last_step`, from wherever the workdir stands.

    Args:
      config: the recipe.
      workdir: folder of checkpoints, tokenizer, metrics, curves and summary; made if missing. A
        path, or gs://BUCKET/FOLDER.
      open_job: (config with `model` resolved, workdir, mesh) -> what to train.
      optimizer: instead of the one that `config.optimizer` describes; to resume, give it again.
      shares_programs: whether later runs of this process may need the same train step with other
        learning rates: it is then compiled once (see `rate_table`).

    Returns:
      Steps, metrics and state. `preempted` is true if a signal (SIGTERM, SIGINT) stopped the run,
      which is saved then. Signals arrive only if this runs in the main thread.

    Raises:
      ConfigError: a setting cannot work, or contradicts the run in `workdir`.
      StoreError: the store is missing or damaged.
      CheckpointError: checkpoints exist but none is intact, or a save failed.
      TrainingDivergedError: a loss or gradient is not finite.
      WorkdirInUseError: another process trains in `workdir`.
    """
    start_up = StartUp()
    validate(config)
    use_compilation_cache()
    distributed.check_alike(
        {
            "version of bertjax": __version__,
            "version of jax": jax.__version__,
            "recipe (--print_config shows it)": config.to_json(),
        }
    )
    place = open_workdir(workdir)
    mesh = make_mesh(config.mesh)
    check_fits_mesh(config, mesh)
    resolved = with_resolved_model(config)
    check_backend(resolved.model, jax.default_backend(), jax.device_count())
    # One process holds the lock for all of them: they share the workdir.
    writes = jax.process_index() == 0
    lock = lock_workdir(place.path) if writes else contextlib.nullcontext()
    several = jax.process_count() > 1
    try:
        with PreemptionGuard(deferred=several) as guard, lock, jax.set_mesh(mesh):
            distributed.check_shared(place.path)
            job = open_job(resolved, place, mesh)
            distributed.check_alike(job.fingerprints)
            keep = config.checkpoint.keep
            with (
                place.kept() if writes else contextlib.nullcontext(),
                CheckpointStore(place.path, keep, before_seal=place.upload) as checkpoints,
            ):
                trainer = _Trainer(
                    config,
                    place,
                    mesh,
                    job,
                    checkpoints,
                    start_up,
                    optimizer or make_optimizer(config.optimizer, config.total_steps),
                    shares_programs,
                )
                if writes:
                    resumed = trainer.step > 0 and trainer.continued is None
                    keep_tokenizer(place.local, job.source.tokenizer, resumed=resumed)
                    if trainer.continued and (other := workdir_of(trainer.continued)):
                        place.take_records(other)
                    keep_labels(place.local, job.source.labels)
                    if trainer.step < config.last_step:  # an earlier end is not the end any more
                        (place.local / SCORES).unlink(missing_ok=True)
                with (
                    Tracker(place.local, config, job.objective.reported, trainer.step) as tracker,
                    Profile(config, place.local) as profile,
                ):
                    finished = trainer.train(tracker, guard, profile)
                if finished:
                    trainer.summarize()
                last = tracker.evaluations[-1] if tracker.evaluations else {}
                return TrainingResult(
                    workdir=place.path,
                    steps=trainer.step,
                    metrics=trainer.scores or {k: last[k] for k in last if k.startswith("heldout")},
                    preempted=not finished,
                    state=trainer.state,
                )
    except Preempted as preempted:
        _LOG.warning("%s before the first step: there was nothing to save", preempted)
        return TrainingResult(place.path, 0, {}, preempted=True, state=None)


def with_resolved_model(config: Config) -> Config:
    """The configuration with what "auto" in `config.model` means on these devices."""
    return dataclasses.replace(config, model=resolve_model(config.model, jax.default_backend()))


class _Trainer:
    """The state of one run, and what can be done with it: train, evaluate, save, summarise."""

    def __init__(
        self,
        config: Config,
        workdir: Workdir,
        mesh: Mesh,
        job: Job,
        checkpoints: CheckpointStore,
        start_up: StartUp,
        optimizer: Optimizer,
        shares_programs: bool,
    ):
        self.config, self.workdir, self.mesh = config, workdir, mesh
        self.job, self.checkpoints = job, checkpoints
        self.resolved = with_resolved_model(config)
        self.model = self.resolved.model
        self.phases = Phases(config)
        self.row_flops = [job.objective.row_flops(phase) for phase in config.resolved_phases()]
        self.optimizer = optimizer
        self.rates: jax.Array | None = None
        if shares_programs and optimizer.with_schedule:
            table = rate_table(optimizer.schedule, config.last_step)
            self.rates = jax.device_put(table, replicated(mesh))
        (
            self.state,
            self.seconds_before,
            self.num_microbatches,
            totals,
            predicted,
            self.continued,
        ) = start(config, self.model, job.source, self.optimizer, checkpoints, mesh)
        self.decay_start = config.optimizer.decay_start(config.total_steps)
        self.since_logged = SinceLogged(job.objective, totals, predicted)
        self.key = jax.device_put(jax.random.key(config.seed), replicated(mesh))
        self.num_parameters = sum(x.size for x in jax.tree.leaves(self.state.params))
        self.step = int(self.state.step)
        self.scores: dict[str, float] = {}  # of the last evaluation of this process
        self.saved_step = self.step
        self.started = self.saved_at = time.monotonic()
        self.throughput = Throughput()
        self.start_up: StartUp | None = start_up  # until the first step is done
        self.agreement = distributed.Agreement(mesh)
        _LOG.info(
            "%s parameters in float32, computing in %s on %d x %s, mesh %s",
            f"{self.num_parameters:,}",
            self.model.dtype,
            jax.device_count(),
            jax.devices()[0].device_kind,
            " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
        )
        if config.model.attention == "auto":
            _LOG.info("config.model.attention = 'auto' is %r here", self.model.attention)
        if jax.default_backend() == "gpu" and "deterministic_ops" not in os.environ.get(
            "XLA_FLAGS", ""
        ):
            _LOG.info(
                "on a GPU two runs of one seed differ by rounding; "
                "XLA_FLAGS=--xla_gpu_deterministic_ops=true makes them the same to the bit"
            )

    def train(self, tracker: Tracker, guard: PreemptionGuard, profile: Profile) -> bool:
        """Takes the steps that are left; False = preempted, after a save."""
        self._protect(tracker)
        if self.continued:  # from here on the other run's checkpoint is not needed any more
            self.checkpoints.save(
                self.step,
                self.state.params,
                self.state.opt_state,
                self.continued.progress,
                dataclasses.asdict(self.config),
            )
        while self.step < self.config.last_step:
            # Asked first: between two phases there may be minutes of compiling.
            (stop,) = self.agreement.now(guard.requested)
            index = self.phases.index(self.step)
            finished = not stop and self._train_phase(index, tracker, guard, profile)
            if not finished or self.step < self.config.last_step:
                self._save()  # also before the next phase is compiled, which may take minutes
            if not finished:
                self.checkpoints.wait()
                saved = f"saved at step {self.step:,}" if self.step else "there was nothing to save"
                _LOG.warning("preempted: %s, run again to resume", saved)
                return False
        # Process 0 alone knows what evals.jsonl has.
        (missing,) = self.agreement.now(
            jax.process_index() == 0 and tracker.last_evaluation != self.step
        )
        if missing:
            self._evaluate(tracker)
        self._save()
        self.checkpoints.wait()
        return True

    def summarize(self) -> None:
        """Writes summary.json and curves.png, and prints what came out."""
        digest = params_sha256(self.state.params)  # by all processes
        if jax.process_index() != 0:
            return
        evaluation = read_lines(self.workdir.local / EVALS)[-1]
        heldout = {name: value for name, value in evaluation.items() if name.startswith("heldout")}
        summary = {
            "parameters": self.num_parameters,
            "steps": self.step,
            "seconds": round(self._seconds(), 1),
            **heldout,
            "params_sha256": digest,
            "hardware": devices_in_words(),
        }
        write_summary(self.workdir.local, summary)
        self.job.plot(self.workdir.local)
        _LOG.info(
            "finished %s steps in %.0f s: %s",
            f"{self.step:,}",
            self._seconds(),
            self.job.describe(heldout),
        )
        _LOG.info("summary.json, curves.png, metrics.jsonl and checkpoints: %s", self.workdir.path)

    def _train_phase(
        self, index: int, tracker: Tracker, guard: PreemptionGuard, profile: Profile
    ) -> bool:
        """Takes the steps of one phase; False = asked to stop."""
        phase, end = self.phases[index], self.phases.end(index)
        if self.start_up:
            self.start_up.ends("data and state")
        seconds, reason = estimate_step_seconds(self.resolved, phase, self.mesh)
        _LOG.info("phase %d: at least %.3g s a step (%s)", index, seconds, reason)
        # Agreed on, since every process must take the same turns.
        is_slow = distributed.smallest(round(1e3 * seconds)) >= 1e3 * _SLOW_STEP_SECONDS
        self.throughput.restart()
        # The compiler is at work while the rows are found and the first of them made. Who is asked
        # to stop does not wait for it.
        beside = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        try:
            memory = distributed.smallest(self._memory_bytes())
            compiling = beside.submit(self._compile, index, memory)
            reader = self.job.training_rows(index)
            position = self.phases.position(self.step, index)
            batches = DeviceBatches(self.config, reader, phase, position, self.mesh)
            step_function = compiling.result()
        finally:
            beside.shutdown(wait=False, cancel_futures=True)
        _LOG.info(
            "%s rows per epoch, %.2f epochs in this phase",
            f"{reader.num_rows:,}",
            self.phases.num_steps(index) * phase.global_batch_size / reader.num_rows,
        )
        guard.defer()
        with batches:
            if self.start_up:
                self.start_up.ends("rows and program")
            last: tuple[np.ndarray, dict[str, Any]] | None = None
            stop = False
            while self.step < end and not stop:
                profile.update(self.step, last)
                with jax.profiler.StepTraceAnnotation("train", step_num=self.step):
                    row_ids, batch = next(batches)
                    self.state, metrics = step_function(self.state, batch, self.key)
                # The step before is reported while the devices are busy with this one.
                self._report(tracker, index, self.step, last)
                self.step += 1
                last = row_ids, metrics
                # Before another step is begun, behind which the sums would have to wait.
                self.since_logged.add(metrics, phase)
                if is_slow:  # the next one is not begun before a signal can be heard
                    self._report(tracker, index, self.step, last)
                    last = None
                ask = self.agreement.now if is_slow else self.agreement.soon
                stop, save = ask(guard.requested, self._minutes_are_up())
                # The vote may be that of the step before, which did not know of a save since.
                save &= self.step > self.saved_step + (not is_slow)
                save |= self._is_due(self.config.checkpoint.every_steps)
                save |= self.step == self.decay_start  # a longer run can begin from it
                evaluate = self._is_due(self.config.eval.every_steps)
                save |= evaluate and self.job.main_metric is not None  # it may be the best
                if (evaluate or save) and self.step < self.config.last_step:
                    # Reported, so known to be finite, before it is believed.
                    self._report(tracker, index, self.step, last)
                    last = None
                    with self.throughput.paused():
                        if evaluate:
                            self._evaluate(tracker)
                        if save:
                            self._save()
            self._report(tracker, index, self.step, last)
        return self.step >= end

    def _compile(self, index: int, memory: int) -> Callable[..., Any]:
        """The step of a phase; at the start also those of later ones that may not fit."""
        before = self.num_microbatches.get(index)
        with jax.set_mesh(self.mesh):  # of this thread
            step_function, parts = self._compile_phase(index, memory, before)
            first_step = self.continued.step if self.continued else 0
            if self.step == first_step:  # found out now, and not after days
                state = self._abstract_state()
                for later in range(index + 1, self.phases.index(self.config.last_step - 1) + 1):
                    phase = self.phases[later]
                    batch = abstract_batch(self.job.objective, phase, self.mesh)
                    if may_not_fit(self.resolved, phase, state, batch, self.mesh, memory):
                        _LOG.info("phase %d may not fit the memory: compiled to find out", later)
                        self._compile_phase(later, memory)
        if before not in (None, parts):
            _LOG.warning(
                "%d microbatches, %d before the restart: the rounding will differ", parts, before
            )
        self.num_microbatches[index] = parts
        return step_function

    def _abstract_state(self) -> TrainState:
        return abstract_state(
            self.model, self.optimizer, self.mesh, self.config.mesh.shard_optimizer
        )

    def _memory_bytes(self) -> int:
        """Memory of a device that the run may use; what its state takes already is part of it."""
        memory = device_memory_bytes(self.mesh)
        if self.mesh.devices.flat[0].platform == "cpu":  # where it is what nobody uses yet
            memory += bytes_a_device(self.state)
        return memory

    def _compile_phase(
        self, index: int, memory: int, first: int | None = None
    ) -> tuple[Callable[..., Any], int]:
        phase = self.phases[index]
        compiled, parts = compile_train_step(
            self.resolved,
            phase,
            self.job.objective,
            self.optimizer,
            self._abstract_state(),
            abstract_batch(self.job.objective, phase, self.mesh),
            self.mesh,
            memory,
            first,
            self.rates,
        )
        if self.rates is None:
            return compiled, parts
        return functools.partial(compiled, self.rates), parts

    def _report(
        self,
        tracker: Tracker,
        index: int,
        step: int,
        last: tuple[np.ndarray, dict[str, Any]] | None,
    ) -> None:
        """Waits for a step, checks that it is finite and logs the steps since the last line if due.

        Of every step it fetches three numbers; the rest only when a line is due.
        """
        if last is None:
            return
        row_ids, on_device = last
        phase = self.phases[index]
        wait_until_ready(on_device["loss"])
        loss, grad_norm, real_tokens = (
            x.item()
            for x in jax.device_get([on_device[n] for n in ("loss", "grad_norm", "real_tokens")])
        )
        if self.start_up:
            self.start_up.ends("first step")
            _LOG.info("first step done %s", self.start_up)
            self.start_up = None
        self.throughput.add(
            phase.global_batch_size, real_tokens, phase.global_batch_size * self.row_flops[index]
        )
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        if finite and step % self.config.log.every_steps and step != self.config.last_step:
            return
        record = {
            "step": step,
            "phase": index,
            "position": self.phases.position(step, index),
            **self.since_logged.take(),
            "learning_rate": on_device["learning_rate"].item(),
        }
        row_ids = gather_row_ids(row_ids, self.mesh, phase.global_batch_size)
        record["rows_sha256"] = hashlib.sha256(row_ids.astype("<i8").tobytes()).hexdigest()
        rates = self.throughput.measure()
        if rates is not None:
            record.update(rates._asdict())
            record["mfu"] = mfu(
                **rates._asdict(),
                length=phase.max_length,
                row_flops=self.row_flops[index],
                device_kind=jax.devices()[0].device_kind,
                num_devices=jax.device_count(),
            )
        tracker.log_step(
            record, self.throughput.seconds_left(self.phases.flops_left(step, self.row_flops))
        )
        if not finite:
            good = self.checkpoints.wait()
            raise TrainingDivergedError(
                f"step {step}: loss {loss}, gradient norm {grad_norm}; the "
                "last good checkpoint is "
                + (f"step {good} in {self.checkpoints.directory}" if good is not None else "none")
                + ". Lower the learning rate or lengthen the warm-up, in a new --workdir (with "
                "init_from to start from a checkpoint)"
            )

    def _evaluate(self, tracker: Tracker) -> None:
        index = self.phases.index(self.step - 1)
        self.scores = self.job.evaluate(index, self.state.params)
        tracker.log_eval({"step": self.step, "phase": index, **self.scores})
        self._protect(tracker)

    def _protect(self, tracker: Tracker) -> None:
        """Keeps the best checkpoint so far, and that before the decay.

        It matters in process 0, which removes old ones.
        """
        kept = set() if self.decay_start is None else {self.decay_start}
        metric = self.job.main_metric
        if metric and tracker.evaluations:
            self.checkpoints.wait()  # one that is being saved would remove the best so far
            kept.add(max(tracker.evaluations, key=lambda line: line[metric])["step"])
        self.checkpoints.protected_steps = kept

    def _save(self) -> None:
        """Saves, unless this very step was saved or is the one that the run resumed from."""
        self.saved_at = time.monotonic()
        if self.step == self.saved_step:
            return
        index = self.phases.index(self.step - 1)
        position = self.phases.position(self.step, index)
        self.checkpoints.save(
            self.step,
            self.state.params,
            self.state.opt_state,
            progress_record(
                self.step,
                index,
                position,
                self.num_microbatches[index],
                self._seconds(),
                self.since_logged.totals(),
                self.since_logged.predicted_tokens(),
                self.job.source,
            ),
            dataclasses.asdict(self.config),
        )
        self.saved_step = self.step

    def _is_due(self, every_steps: int) -> bool:
        return every_steps > 0 and self.step % every_steps == 0

    def _minutes_are_up(self) -> bool:
        minutes = self.config.checkpoint.every_minutes
        return minutes > 0 and time.monotonic() - self.saved_at > 60 * minutes

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started
