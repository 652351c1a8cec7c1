"""The BERT encoder and its heads: Flax Linen modules, used through pure `apply` only."""

from bertjax.models.bert import (
    BertEncoder,
    BertForPreTraining,
    abstract_params,
    apply_model,
    compute_dtype,
    init_params,
)
from bertjax.models.dropout import dropout, split_row_keys

__all__ = [
    "BertEncoder",
    "BertForPreTraining",
    "abstract_params",
    "apply_model",
    "compute_dtype",
    "dropout",
    "init_params",
    "split_row_keys",
]
