"""The BERT encoder and its heads: Flax Linen modules, used through pure `apply` only."""

from bertjax.models.bert import BertEncoder, Packing
from bertjax.models.build import (
    abstract_params,
    apply_model,
    check_backend,
    compute_dtype,
    init_params,
    make_model,
    resolve_model,
    without_gradients,
)
from bertjax.models.causal import BertForCausalLM
from bertjax.models.dropout import dropout, split_row_keys
from bertjax.models.fine_tuning import (
    BertForClassification,
    BertForSpans,
    BertForTagging,
    name_outputs,
)
from bertjax.models.mlm_head import MaskedLanguageModelHead
from bertjax.models.pretraining import BertForPreTraining

__all__ = [
    "BertEncoder",
    "BertForCausalLM",
    "BertForClassification",
    "BertForPreTraining",
    "BertForSpans",
    "BertForTagging",
    "MaskedLanguageModelHead",
    "Packing",
    "abstract_params",
    "apply_model",
    "check_backend",
    "compute_dtype",
    "dropout",
    "init_params",
    "make_model",
    "name_outputs",
    "resolve_model",
    "split_row_keys",
    "without_gradients",
]
