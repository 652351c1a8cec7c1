"""bertjax: pre-training of BERT-like encoders in JAX on TPUs and GPUs.

import bertjax

bertjax.show_log()
store = bertjax.build_store("corpus/*.txt", "stores/mine", "train:wordpiece", vocab_size=8_000)
run = bertjax.pretrain("tiny", "runs/mine", {"data.store": store.path})
bert = bertjax.load(run.workdir)

Everything is imported when it is first used: `import bertjax` alone imports neither jax nor numpy.
"""

import importlib
from typing import TYPE_CHECKING, Any

from bertjax import moved
from bertjax.config import Config, ConfigError
from bertjax.errors import BertjaxError
from bertjax.version import __version__

if TYPE_CHECKING:
    from bertjax.cli.command_line import show_log
    from bertjax.cli.recipes import load_recipe
    from bertjax.data.tokenizers.tokenizer import register_tokenizer
    from bertjax.encoder import Encoder, load
    from bertjax.evaluation import Evaluation, evaluate
    from bertjax.extensions import register_encoder, register_head
    from bertjax.fine_tuning.fine_tune import GridResult, fine_tune, fine_tune_grid
    from bertjax.fine_tuning.run import FineTuningResult
    from bertjax.inspect.report import inspect_data
    from bertjax.plan.plan_run import RunPlan, plan_run, search_layouts
    from bertjax.prepare.build_store import build_store
    from bertjax.pretraining.run import pretrain
    from bertjax.sweeps.sweep import SweepResult, fine_tune_sweep
    from bertjax.tasks.registry import register_task
    from bertjax.training.result import TrainingResult
    from bertjax.weights.conversion import convert_checkpoint

__all__ = [
    "BertjaxError",
    "Config",
    "ConfigError",
    "Encoder",
    "Evaluation",
    "FineTuningResult",
    "GridResult",
    "RunPlan",
    "SweepResult",
    "TrainingResult",
    "__version__",
    "build_store",
    "convert_checkpoint",
    "evaluate",
    "fine_tune",
    "fine_tune_grid",
    "fine_tune_sweep",
    "inspect_data",
    "load",
    "load_recipe",
    "plan_run",
    "pretrain",
    "register_encoder",
    "register_head",
    "register_task",
    "register_tokenizer",
    "search_layouts",
    "show_log",
]

_WHERE = {
    "Encoder": "encoder",
    "Evaluation": "evaluation",
    "FineTuningResult": "fine_tuning.run",
    "GridResult": "fine_tuning.fine_tune",
    "RunPlan": "plan.plan_run",
    "SweepResult": "sweeps.sweep",
    "TrainingResult": "training.result",
    "build_store": "prepare.build_store",
    "convert_checkpoint": "weights.conversion",
    "evaluate": "evaluation",
    "fine_tune": "fine_tuning.fine_tune",
    "fine_tune_grid": "fine_tuning.fine_tune",
    "fine_tune_sweep": "sweeps.sweep",
    "inspect_data": "inspect.report",
    "load": "encoder",
    "load_recipe": "cli.recipes",
    "plan_run": "plan.plan_run",
    "pretrain": "pretraining.run",
    "register_encoder": "extensions",
    "register_head": "extensions",
    "register_task": "tasks.registry",
    "register_tokenizer": "data.tokenizers.tokenizer",
    "search_layouts": "plan.plan_run",
    "show_log": "cli.command_line",
}

moved.install()


def __getattr__(name: str) -> Any:
    """Imports a public name, and with it jax where it needs that, when it is first asked for."""
    if name in _WHERE:
        return getattr(importlib.import_module(f"bertjax.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'bertjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*globals(), *__all__})
