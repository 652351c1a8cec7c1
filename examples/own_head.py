"""A head and a task of your own: count something in a text, with a Poisson regression.

It trains an encoder for 30 steps and fine-tunes it to count the errors in a text; see own_head.md.

    python examples/own_head.py embedded:python runs/own_head
"""

import sys

import jax
import jax.numpy as jnp
from flax import linen as nn

import bertjax
from bertjax.config import ModelConfig
from bertjax.heads import Answer, Head
from bertjax.models import BertEncoder
from bertjax.models.layers import output_layer
from bertjax.objectives.fine_tuning import Loss, fine_tuning_objective
from bertjax.parameters import dense_parameters
from bertjax.tasks.text_task import Columns, TextTask


class BertForCounts(nn.Module):
    config: ModelConfig

    def setup(self):
        self.bert = BertEncoder(self.config)
        nn.share_scope(self, self.bert)  # the encoder's parameters are at the root of the tree
        self.count_head = output_layer(self.config, 1)

    def __call__(self, input_ids, token_type_ids, attention_mask, row_keys=None):
        hidden_states, _ = self.bert(input_ids, token_type_ids, attention_mask, row_keys)
        rates = jax.nn.softplus(self.count_head(hidden_states) - 2)  # [b, t, 1]
        return jnp.sum(rates * attention_mask[..., None], axis=1)  # [b, 1], the expected count


def poisson_sums(outputs, answers, weights):
    (expected,), (counts,) = outputs, answers
    losses = expected - counts * jnp.log(expected + 1e-6) + jax.lax.lgamma(counts + 1)
    return jnp.sum(losses * weights), jnp.sum(weights)


class CountTask(TextTask):
    def scores(self, examples, predictions):
        pairs = zip(examples, predictions, strict=True)
        off = sum(abs(p["value"] - e.label) for e, p in pairs) / len(examples)
        return {**super().scores(examples, predictions), "minus_error": -off}


HEAD = Head(
    name="count",
    module=BertForCounts,
    trained_on="task",
    objective=fine_tuning_objective,
    layers=("count_head",),
    num_labels=1,
    fewest_labels=1,
    outputs={"expected": "counts"},
    answers={"counts": Answer("float32")},
    loss=Loss(poisson_sums, "nats", has_accuracy=False),
    task=CountTask,
    verbs=("count",),
)
LAYER = dense_parameters("count_head", ("hidden_size", 1), ("embed", None), "tokens")
bertjax.register_head(HEAD, LAYER)
TASK = CountTask("count", "count", Columns("text"), metrics=(), main_metric="minus_error")
bertjax.register_task("count", lambda options: TASK)

if __name__ == "__main__":
    text, folder = sys.argv[1:]
    store = bertjax.build_store(text, f"{folder}/store", "train:wordpiece", vocab_size=2_000)
    base = {"data.store": store.path, "model.vocab_size": 2_000, "optimizer.warmup_steps": 10}
    start = bertjax.pretrain("tiny", f"{folder}/bert", {**base, "phases[0].num_steps": 30}).workdir
    data, texts = start / "counts.tsv", {n: f"{'an error and ' * n}a list" for n in range(5)}
    data.write_text("text\tlabel\n" + "".join(f"{texts[n]}\t{n}\n" for n in texts) * 20)
    fast = {"epochs": 10, "batch_size": 10, "learning_rate": 1e-3, "max_length": 32}
    run = bertjax.fine_tune("count", start, f"{folder}/count", data, data, **fast)
    print(run.scores, bertjax.load(run.workdir).predict([texts[0], texts[2]]))
