"""A pre-training objective of your own: find the tokens that were replaced by random ones.

It trains for 80 steps on a text; see own_objective.md.

    python examples/own_objective.py embedded:python runs/own_objective
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

import bertjax
from bertjax.heads import Head
from bertjax.models import BertForTagging, apply_model
from bertjax.objectives.objective import Metric, Objective, row_flops
from bertjax.objectives.pretraining import pretraining_fields

LOSS = Metric("detection_loss", "detection {:.3f}", "Detection", "nats per token", "share_entropy")


def real_tokens(batch):  # [b, t], 0 for padding
    return batch["attention_mask"] * batch["row_weights"][:, None]


def sums(model, params, batch, dropout_keys, sampling_keys):
    """Puts random tokens in the masked positions and asks the model which tokens they are."""
    positions, used = batch["masked_positions"], batch["masked_weights"] > 0
    places, size = (np.arange(len(positions))[:, None], positions), model.config.vocab_size
    draw = jax.vmap(lambda key: jax.random.randint(key, positions.shape[1:], 0, size))
    ids, drawn = batch["input_ids"], draw(sampling_keys)
    ids = ids.at[places].add(jnp.where(used, drawn - ids[places], 0))
    replaced = jnp.zeros(ids.shape).at[places].add(used & (drawn != batch["masked_ids"]))
    inputs = (ids, batch["token_type_ids"], batch["attention_mask"], dropout_keys)
    logits = apply_model(model, params, *inputs)[..., 0]  # [b, t], above 0 = replaced
    losses = jax.nn.softplus(logits) - logits * replaced
    return {"loss": jnp.sum(losses * (real := real_tokens(batch))), "weight": jnp.sum(real)}


def mean_loss(sums, denominators):
    return sums["loss"] / jnp.maximum(denominators["weight"], 1)


def baselines(batches, unigrams):
    """The loss of a model that knows how many tokens are replaced, but not which."""
    counts = [(batch["masked_weights"].sum(), real_tokens(batch).sum()) for batch in batches]
    p = np.divide(*np.sum(counts, axis=0))
    return {"share_entropy": float(-p * np.log(p) - (1 - p) * np.log(1 - p))}


def detection_objective(config):
    model = BertForTagging(config)  # a dense layer on each token, `model.num_labels` wide
    return Objective(
        model=model,
        fields=pretraining_fields,
        sums=functools.partial(sums, model),
        denominators=lambda batch: {"weight": jnp.sum(real_tokens(batch))},
        loss=mean_loss,
        metrics=lambda sums: {LOSS.name: mean_loss(sums, sums)},
        reported=(LOSS,),
        row_flops=functools.partial(row_flops, config),
        baselines=baselines,
    )


HEAD = Head("detection", BertForTagging, "store", detection_objective, layers=("tagging_head",))
bertjax.register_head(HEAD)

if __name__ == "__main__":
    text, folder = sys.argv[1:]
    store = bertjax.build_store(text, f"{folder}/store", "train:wordpiece", vocab_size=2_000)
    base = {"data.store": store.path, "model.vocab_size": 2_000, "optimizer.warmup_steps": 10}
    own = {"model.head": "detection", "model.num_labels": 1, "model.next_sentence": False}
    run = bertjax.pretrain("tiny", f"{folder}/run", {**base, **own, "phases[0].num_steps": 80})
    print(run.steps, run.metrics, bertjax.load(run.workdir))
