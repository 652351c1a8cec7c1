"""`bertjax.load`: weights of any format as an object that encodes text.

import bertjax

bert = bertjax.load("runs/mine")  # or a Hugging Face folder, or a TF1 checkpoint
bert.encode(["A text.", ("A question?", "A text.")]).hidden_states  # float32 [2, t, d]
bert.embed(["A text.", "Another one."])  # float32 [2, d]: the mean over each text's tokens
bert.fill_mask("Paris is the [MASK] of France.")
bert.score("Paris is the capital of France.").log_likelihood  # nats
bertjax.load("runs/reviews").classify(["A fine film.", "A dull one."])  # fine-tuned models
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, overload

import jax
import jax.numpy as jnp
import numpy as np

from bertjax.config import ConfigError, ModelConfig
from bertjax.data.texts import (
    Row,
    Text,
    TextError,
    encode_masked,
    encode_text,
    make_row,
    pad_rows,
)
from bertjax.data.tokenizers.tokenizer import load_folder
from bertjax.data.tokenizers.vocabulary import Tokenizer
from bertjax.errors import BertjaxError
from bertjax.heads import EMBED, FILL_MASK, HEADS, INPUTS, NEXT_SENTENCE, SCORE, resolve
from bertjax.models import (
    BertEncoder,
    apply_model,
    check_backend,
    make_model,
    name_outputs,
    without_gradients,
)
from bertjax.models.inspection import inspect_layers
from bertjax.scoring import Score, Scorer
from bertjax.tasks.registry import make_task
from bertjax.tasks.task import Task, join_outputs
from bertjax.weights.formats import read_weights

_LOG = logging.getLogger(__name__)

# Rows are padded to one of few shapes, each of which is compiled once.
_LENGTHS = (16, 32, 64, 128, 256)  # then the model's number of positions
_SCORED_LENGTHS = (  # a row per token: padding costs more
    16,
    24,
    32,
    48,
    64,
    96,
    128,
    192,
    256,
    384,
    512,
    768,
    1_024,
)
_NUM_ROWS = (1, 8, 64, 256)
_BATCH_TOKENS = 4_096  # rows x length at most, padding included


class HeadError(BertjaxError, ValueError):
    """The weights lack the head that was asked for."""


class Encoded(NamedTuple):
    """Numpy arrays in float32; b texts in their order, t tokens of the longest, d hidden."""

    hidden_states: np.ndarray  # [b, t, d] of the last layer; 0 at padding
    pooled: np.ndarray | None  # [b, d]: the pooler's, of [CLS] or the last token; None without
    mean_pooled: np.ndarray  # [b, d]: mean of the hidden states, special tokens included
    attention_mask: np.ndarray  # [b, t]: 1 = a token, 0 = padding


class Prediction(NamedTuple):
    """What may stand at a [MASK]."""

    piece: str
    id: int
    probability: float


class Inspection(NamedTuple):
    """What the layers make of one row of t tokens; numpy arrays in float32."""

    pieces: list[str]  # t, special tokens included
    hidden_states: np.ndarray  # [1 + layers, t, d]: of the embeddings, then of each layer
    attentions: np.ndarray  # [layers, heads, t, t]: query by key; each query's add up to 1


class Encoder:
    """A BERT with its tokenizer, on JAX's default device; see `load`.

    Attributes:
      model: the Flax module that `config.head` names, for use with `model.apply`.
      params: its parameters, nested dict of jax.Array in float32.
      tokenizer: see `bertjax.data.tokenizers.tokenizer`.
      config: `ModelConfig`, resolved.
      labels: names of the labels of a classification or tagging head, where they are known.
      task: the fields of `TaskConfig` that a bertjax model was fine-tuned with, else None.
      can: what the model can be asked, the default of `predict` first: "fill-mask",
        "next-sentence", "score", "classify", "answer", "tag", "embed".
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Any,
        tokenizer: Tokenizer,
        labels: tuple[str, ...] = (),
        task: Mapping[str, Any] | None = None,
    ):
        """Puts the parameters onto the default device.

        Args:
          config: resolved.
          params: nested dict of arrays.
          tokenizer: with as many pieces as the word table has rows.
          labels: of a classification or tagging head.
          task: what it was fine-tuned with.
        """
        self.config = config
        self.model = make_model(config)
        self.params = jax.tree.map(jnp.asarray, params)
        self.tokenizer = tokenizer
        self.labels = labels
        self.task = task
        self.can = HEADS[config.head].can(config.next_sentence)
        encoder = BertEncoder(config)
        self._encode = jax.jit(functools.partial(_encode, encoder))
        self._embed = jax.jit(lambda *inputs: self._encode(*inputs)[2])
        self._predict = jax.jit(functools.partial(apply_model, self.model))
        self._inspect = jax.jit(functools.partial(inspect_layers, encoder))
        self._scorer = Scorer(
            config, tokenizer, functools.partial(self._batches, padded=_SCORED_LENGTHS)
        )

    def __repr__(self) -> str:
        """Such as `Encoder(12 layers, 768 wide, 30,522 pieces, head 'pretraining', float32)`."""
        config = self.config
        labels = f" of {config.num_labels} labels" if HEADS[config.head].labels_have_names else ""
        return (
            f"Encoder({config.num_layers} layers, {config.hidden_size} wide, "
            f"{config.vocab_size:,} pieces, head {config.head!r}{labels}, {config.dtype})"
        )

    def encode(self, texts: Text | Sequence[Text]) -> Encoded:
        """Encodes texts; those of more than `config.max_positions` tokens are cut, with a warning.

        Args:
          texts: a text, a pair of texts as a tuple, or a list of texts and pairs. Of very many,
            `hidden_states` takes much memory, and `embed` does not make it.

        Returns:
          The arrays, texts in the order given. What else is in the list, and so how a text is
          padded, changes a number by float32 rounding only.

        Raises:
          TypeError: a text is neither a str nor a tuple of two.
        """
        rows = self._rows(texts)
        length = max((len(row.ids) for row in rows), default=0)
        shape = (len(rows), length, self.config.hidden_size)
        hidden_states = np.zeros(shape, np.float32)
        pooled = np.zeros((shape[0], shape[2]), np.float32) if self.config.pooler else None
        mean_pooled = np.zeros((shape[0], shape[2]), np.float32)
        attention_mask = np.zeros(shape[:2], np.float32)
        for chosen, inputs in self._padded(rows):
            outputs = self._encode(self.params, *inputs)
            hidden, pool, mean = jax.device_get(outputs)
            for place, i in enumerate(chosen):
                n = len(rows[i].ids)
                hidden_states[i, :n] = hidden[place, :n]
                attention_mask[i, :n] = 1
            mean_pooled[chosen] = mean[: len(chosen)]
            if pooled is not None:
                pooled[chosen] = pool[: len(chosen)]
        return Encoded(hidden_states, pooled, mean_pooled, attention_mask)

    def embed(self, texts: Text | Sequence[Text]) -> np.ndarray:
        """The `mean_pooled` of `encode` alone: of many texts, for it keeps no hidden states.

        Args:
          texts: as in `encode`.

        Returns:
          Float32 [b, d].

        Raises:
          TypeError: a text is neither a str nor a tuple of two.
        """
        rows = self._rows(texts)
        vectors = np.zeros((len(rows), self.config.hidden_size), np.float32)
        for chosen, inputs in self._padded(rows):
            vectors[chosen] = self._embed(self.params, *inputs)[: len(chosen)]
        return vectors

    def predict(self, texts: Text | list[Text], max_length: int | None = None) -> Any:
        """What the model's head is for: `fill_mask`, `score`, `classify`, `answer`, `tag`, `embed`.

        Args:
          texts: one, or a list.
          max_length: tokens per row of `classify`, `answer` and `tag`.

        Raises:
          HeadError: as the method that is called.
          TextError: likewise.
        """
        if self.can[0] == FILL_MASK:
            return self.fill_mask(cast(list[str], texts))  # which refuses pairs
        if self.can[0] == SCORE:
            return self.score(texts)
        return self.embed(texts) if self.can[0] == EMBED else self._ask(None, texts, max_length)

    @overload
    def classify(self, texts: Text, max_length: int | None = None) -> dict[str, Any]: ...
    @overload
    def classify(
        self, texts: list[Text], max_length: int | None = None
    ) -> list[dict[str, Any]]: ...
    def classify(self, texts: Text | list[Text], max_length: int | None = None) -> Any:
        """Classifies texts, or pairs, with a model that was fine-tuned to.

        Args:
          texts: a text, a pair as a tuple, or a list of either.
          max_length: tokens per row; longer texts are cut, with a warning. None = as in the
            fine-tuning.

        Returns:
          For each text `{"label", "probabilities": {label: probability}}`; of a regression
          `{"value"}`. For one text its record, for a list a list.

        Raises:
          HeadError: the model was not fine-tuned on classes or numbers.
          TextError: a text is one where the model takes pairs, or the other way round.
          ConfigError: `max_length` is beyond the positions of the model.
        """
        return self._ask("classify", texts, max_length)

    @overload
    def answer(self, pairs: tuple[str, str], max_length: int | None = None) -> dict[str, Any]: ...
    @overload
    def answer(
        self, pairs: list[tuple[str, str]], max_length: int | None = None
    ) -> list[dict[str, Any]]: ...
    def answer(
        self, pairs: tuple[str, str] | list[tuple[str, str]], max_length: int | None = None
    ) -> Any:
        """Finds the answers of questions in paragraphs, with a model that was fine-tuned to.

        Args:
          pairs: (question, paragraph), or a list of them.
          max_length: tokens per row; longer paragraphs make several. None = as in the fine-tuning.

        Returns:
          For each pair `{"answer", "nbest"}`, as `SquadTask.answer`. For one pair its record, for a
          list a list.

        Raises:
          HeadError: the model was not fine-tuned on questions.
          TextError: something in the list is no pair.
          ConfigError: `max_length` is beyond the positions of the model.
        """
        return self._ask("answer", pairs, max_length)

    @overload
    def tag(self, texts: str, max_length: int | None = None) -> dict[str, Any]: ...
    @overload
    def tag(self, texts: list[str], max_length: int | None = None) -> list[dict[str, Any]]: ...
    def tag(self, texts: str | list[str], max_length: int | None = None) -> Any:
        """Finds the entities in texts, with a model that was fine-tuned to.

        Args:
          texts: words with spaces between them; one text, or a list.
          max_length: tokens per row; longer texts make several. None = as in the fine-tuning.

        Returns:
          For each text the words and their tags, as `NerTask.answer`. For one text its record, for
          a list a list.

        Raises:
          HeadError: the model was not fine-tuned on tags.
          TextError: something in the list is a pair.
          ConfigError: `max_length` is beyond the positions of the model.
        """
        return self._ask("tag", texts, max_length)

    def _ask(
        self, verb: str | None, texts: Any, max_length: int | None
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """The answers of the task's head to one text or several; None = whatever it is."""
        if verb is not None and verb not in self.can:
            raise HeadError(
                f"these weights cannot {verb} (their head is {self.config.head!r}): load the "
                "workdir of a python -m bertjax.finetune on such a task"
            )
        one = isinstance(texts, (str, tuple))
        several: list[Any] = [texts] if one else list(texts)
        paired = bool(several) and isinstance(several[0], tuple)
        answers = self.answer_texts(*self.open_task(paired, max_length), several)
        return answers[0] if one else answers

    def open_task(
        self, paired: bool = False, max_length: int | None = None
    ) -> tuple[Task[Any], int]:
        """The task that the model was fine-tuned for, or one that fits its head; tokens per row.

        Args:
          paired: whether the texts are pairs, where the task is not known and has both.
          max_length: tokens per row; None = as in the fine-tuning. Where that is not known, all
            positions of the model, 384 for questions.

        Raises:
          HeadError: the weights have no head of fine-tuning.
          ConfigError: `max_length` is beyond the positions of the model.
        """
        config = self.config
        most = config.max_positions
        if not HEADS[config.head].outputs:
            raise HeadError(_no_task(config.head))
        if not 1 <= (max_length or 1) <= most:
            raise ConfigError(
                f"--max_length={max_length} is beyond the {most} positions of this model: set "
                f"--max_length={most} or less"
            )
        if self.task:
            task = make_task(self.task["name"], self.task["options"])
            return task, max_length or self.task["max_length"]
        kind = resolve(HEADS[config.head].task)
        length = max_length or min(kind.length_of_texts or most, most)
        labels = self.labels or tuple(map(str, range(config.num_labels)))
        return kind.for_texts(config.head, labels, paired, length), length

    def answer_texts(
        self, task: Task[Any], max_length: int, texts: Sequence[Text]
    ) -> list[dict[str, Any]]:
        """What the model says of each text, as the task of `open_task` has it.

        Raises:
          TextError: a text is one where the task takes pairs, or the other way round.
        """
        examples = []
        for i, text in enumerate(texts):
            if isinstance(text, tuple) != task.takes_pairs:
                expected = "two texts" if task.takes_pairs else "one text"
                raise TextError(i, f"this model takes {expected}, found {_kind(text)}")
            first, second = text if isinstance(text, tuple) else (text, None)
            examples.append(task.example(first, second, i))
        return self.answer_examples(task, max_length, examples)

    def answer_examples(
        self, task: Task[Any], max_length: int, examples: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """What the model says of each example of `Task.read` or `Task.example`.

        Raises:
          TaskError: an example does not fit the rows.
        """
        if not examples:
            return []
        arrays = task.features(examples, self.tokenizer, max_length)
        return [
            task.answer(record)
            for record in task.predictions(examples, arrays, self.outputs(arrays))
        ]

    @overload
    def fill_mask(self, texts: str, top_k: int = 5) -> list[list[Prediction]]: ...
    @overload
    def fill_mask(self, texts: list[str], top_k: int = 5) -> list[list[list[Prediction]]]: ...
    def fill_mask(self, texts: str | list[str], top_k: int = 5) -> Any:
        """Predicts what stands at each [MASK] of a text, most probable first.

        Args:
          texts: one text with one or more `[MASK]`, or a list of them.
          top_k: predictions for each.

        Returns:
          For each `[MASK]` of the text in its order, `top_k` predictions; of several texts a list
          of these.

        Raises:
          HeadError: the weights have no head for masked tokens.
          TextError: there is no [MASK], or it lies beyond what the model can read; a text is none.
          ConfigError: `top_k` is below 1.
        """
        if top_k < 1:
            raise ConfigError(f"top_k={top_k}: expected 1 or more")
        if FILL_MASK not in self.can:
            raise HeadError(
                f"these weights have no head for masked tokens (their head is "
                f"{self.config.head!r}): load the model that a masked pre-training has left"
            )
        if isinstance(texts, str):
            return self._fill(0, texts, top_k)
        return [self._fill(i, text, top_k) for i, text in enumerate(texts)]

    def _fill(self, index: int, text: object, top_k: int) -> list[list[Prediction]]:
        if not isinstance(text, str):
            raise TextError(index, f"fill-mask takes one text, found {_kind(text)}")
        ids = encode_masked(self.tokenizer, text)
        row = make_row(self.tokenizer, ids, None, self.config.max_positions)
        self._warn_of_cuts([row])
        positions = np.flatnonzero(row.ids == self.tokenizer.mask_id)
        if "[MASK]" not in text:
            raise TextError(index, "has no [MASK]; write it where a token is to be predicted")
        if len(positions) < text.count("[MASK]"):
            raise TextError(
                index,
                f"has {text.count('[MASK]')} [MASK], of which {len(positions)} are among the first "
                f"{len(row.ids)} tokens, which is what the model can read; shorten the text",
            )
        length = self._padded_length(len(row.ids))
        inputs = pad_rows([row], 1, length, self.tokenizer.pad_id)
        slots = np.zeros((1, _at_least(len(positions), _LENGTHS, length)), np.int32)
        slots[0, : len(positions)] = positions
        logits, _ = self._predict(self.params, *inputs, slots)
        probabilities = np.asarray(jax.nn.softmax(logits[0], axis=-1))[: len(positions)]
        result = []
        for line in probabilities:
            best = np.argsort(-line, kind="stable")[:top_k].tolist()
            pieces = map(self.tokenizer.id_to_piece, best)
            result.append(list(map(Prediction, pieces, best, line[best].tolist())))
        return result

    def next_sentence(self, first: str, second: str) -> float:
        """The probability that `second` follows `first` in a text, by the pre-training head.

        Raises:
          HeadError: the weights have no head for next sentence.
        """
        if NEXT_SENTENCE not in self.can:
            raise HeadError(
                "these weights have no head for next sentence (config.head = "
                f"{self.config.head!r}, config.next_sentence = {self.config.next_sentence}): load "
                "a model that was pre-trained with it"
            )
        (row,) = self._rows((first, second))
        inputs = pad_rows([row], 1, self._padded_length(len(row.ids)), self.tokenizer.pad_id)
        _, logits = self._predict(self.params, *inputs, np.zeros((1, 1), np.int32))
        return float(jax.nn.softmax(logits[0])[0])  # label 0 = the real next sentence

    @overload
    def score(
        self, texts: Text, mask_rest_of_word: bool | None = None, score_end: bool = False
    ) -> Score: ...
    @overload
    def score(
        self, texts: list[Text], mask_rest_of_word: bool | None = None, score_end: bool = False
    ) -> list[Score]: ...
    def score(
        self,
        texts: Text | list[Text],
        mask_rest_of_word: bool | None = None,
        score_end: bool = False,
    ) -> Any:
        """Says how probable texts are, by the head of pre-training, token by token.

        A left-to-right model gives the log-likelihood: each token is predicted from those before
        it. A masked model gives the pseudo-log-likelihood (Salazar et al. 2020, "Masked Language
        Model Scoring"): each token is masked in turn and predicted from all others, so a text of n
        tokens takes n rows.

        [CLS] is not scored, and [SEP] only with `score_end`. An [UNK] is scored as a token,
        whatever characters it stands for; `Score.pieces` shows it. Texts of different tokenizers
        or models cannot be compared by their scores, nor those of left-to-right and masked models.

        Args:
          texts: a text, or a list. In a pair (a tuple) the second is scored, given the first.
          mask_rest_of_word: of a masked model: also masks the rest of a token's word to its right
            ("PLL-word-l2r", Kauf and Ivanova 2023, "A Better Way to Do Masked Language Model
            Scoring"). Without it the last pieces of a rare word give away the first, and the
            word scores too high. None = True; False is the method of Salazar et al.
          score_end: of a left-to-right model: also scores the [SEP] that ends the text. In
            pre-training a row ends where it is full, so it mostly says how long rows were.

        Returns:
          A `Score` for one text; for a list a list of these.

        Raises:
          HeadError: the weights have no head that predicts tokens.
          ConfigError: an argument is for the other kind of model.
          TextError: a text is longer than the positions of the model.
          TypeError: a text is neither a str nor a tuple of two.
        """
        if SCORE not in self.can:
            raise HeadError(
                f"these weights have no head that predicts tokens (their head is "
                f"{self.config.head!r}): load the model that pre-training has left"
            )
        if HEADS[self.config.head].predicts_next:
            if mask_rest_of_word is not None:
                raise ConfigError(
                    f"--mask_rest_of_word={mask_rest_of_word}: is for masked models, and this one "
                    "is left-to-right: leave it out"
                )
        elif score_end:
            raise ConfigError(
                "--score_end=True: is for left-to-right models, and this one is masked: leave it "
                "out"
            )
        one = isinstance(texts, (str, tuple))
        several: list[Any] = [texts] if one else list(texts)
        if self.config.next_sentence:
            self._check_token_types(any(isinstance(text, tuple) for text in several))
        rows = self._scorer.rows(several, score_end)
        scores = list(self._scorer.scores(self.params, rows, mask_rest_of_word is not False))
        return scores[0] if one else scores

    def inspect(self, text: Text) -> Inspection:
        """Looks inside: the pieces of a text, each layer's hidden states and attention.

        Args:
          text: a text, or a pair of texts as a tuple.
        """
        (row,) = self._rows(text)
        n = len(row.ids)
        inputs = pad_rows([row], 1, self._padded_length(n), self.tokenizer.pad_id)
        hidden_states, attentions = jax.device_get(self._inspect(self.params, *inputs))
        pieces = [self.tokenizer.id_to_piece(i) for i in row.ids.tolist()]
        return Inspection(pieces, hidden_states[:, 0, :n], attentions[:, 0, :, :n, :n])

    def outputs(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs the head of a fine-tuned model over the rows of a task.

        Args:
          arrays: input_ids, token_type_ids, attention_mask int32 [n, t], of `Task.features`.

        Returns:
          Float32 arrays for `Task.predictions`: classification `logits` [n, c]; regression `values`
          [n]; span `start_logits` and `end_logits` [n, t]; tagging `logits` [n, t, c]. See
          `join_outputs` for those of padding.

        Raises:
          HeadError: the weights have no head of fine-tuning.
        """
        head = self.config.head
        if not HEADS[head].outputs:
            raise HeadError(_no_task(head))
        self._check_token_types(bool(arrays["token_type_ids"].any()))
        mask = arrays["attention_mask"]
        parts: dict[str, list[tuple[list[int], np.ndarray]]] = {}
        for chosen, size, padded in self._batches(mask.sum(axis=1)):
            length = min(mask.shape[1], padded)
            inputs = [np.zeros((size, length), np.int32) for _ in INPUTS]
            for x, name in zip(inputs, INPUTS, strict=True):
                x[: len(chosen)] = arrays[name][chosen, :length]
            outputs = name_outputs(head, self._predict(self.params, *inputs))
            for name, output in outputs.items():
                values = np.asarray(output, np.float32)[: len(chosen)]
                parts.setdefault(name, []).append((chosen, values))
        return {name: join_outputs(head, found, mask) for name, found in parts.items()}

    def _rows(self, texts: Text | Sequence[Text]) -> list[Row]:
        """A row each; warns of those that were cut."""
        texts = [texts] if isinstance(texts, (str, tuple)) else list(texts)
        longest = self.config.max_positions
        self._check_token_types(any(isinstance(text, tuple) for text in texts))
        rows = [encode_text(self.tokenizer, text, longest) for text in texts]
        self._warn_of_cuts(rows)
        return rows

    def _check_token_types(self, paired: bool) -> None:
        if paired and self.config.num_token_types < 2:
            raise HeadError(
                "these weights have one token type (config.num_token_types = 1), and pairs need "
                "two: give one text, or load a model of pairs"
            )

    def _padded(self, rows: list[Row]) -> Iterator[tuple[list[int], tuple[np.ndarray, ...]]]:
        """Yields rows of like lengths together: their indices, and the padded batch."""
        for chosen, size, length in self._batches([len(row.ids) for row in rows]):
            yield chosen, pad_rows([rows[i] for i in chosen], size, length, self.tokenizer.pad_id)

    def _batches(
        self, lengths: Sequence[int] | np.ndarray, padded: Sequence[int] = _LENGTHS
    ) -> Iterator[tuple[list[int], int, int]]:
        """Yields rows of like lengths together: their indices, and the shape to pad them to."""
        by_length: dict[int, list[int]] = {}
        for i, n in enumerate(lengths):
            by_length.setdefault(self._padded_length(int(n), padded), []).append(i)
        for length, indices in sorted(by_length.items()):
            most = max(1, min(_NUM_ROWS[-1], _BATCH_TOKENS // length))
            for begin in range(0, len(indices), most):
                chosen = indices[begin : begin + most]
                yield chosen, _at_least(len(chosen), _NUM_ROWS, most), length

    def _padded_length(self, length: int, padded: Sequence[int] = _LENGTHS) -> int:
        return _at_least(length, padded, self.config.max_positions)

    def _warn_of_cuts(self, rows: Sequence[Row]) -> None:
        count = sum(row.is_cut for row in rows)
        if count:
            _LOG.warning(
                "%d of %d texts are longer than %d tokens, the positions of this model, and were "
                "cut",
                count,
                len(rows),
                self.config.max_positions,
            )


def _encode(
    model: BertEncoder,
    params: Any,
    input_ids: jax.Array,
    token_type_ids: jax.Array,
    attention_mask: jax.Array,
) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """Hidden states [b, t, d], pooled [b, d] or None, and mean of the tokens [b, d], in float32."""
    hidden_states, pooled = apply_model(model, params, input_ids, token_type_ids, attention_mask)
    hidden_states = hidden_states.astype(jnp.float32)
    weights = attention_mask[:, :, None].astype(jnp.float32)
    count = jnp.maximum(weights.sum(axis=1), 1)  # rows that fill the batch have no tokens
    mean_pooled = (hidden_states * weights).sum(axis=1) / count
    return hidden_states, None if pooled is None else pooled.astype(jnp.float32), mean_pooled


def _no_task(head: str) -> str:
    return (
        f"these weights have no head of a task (their head is {head!r}): load the workdir of "
        "python -m bertjax.finetune"
    )


def _kind(text: object) -> str:
    """What was found in place of a text, in words."""
    words: dict[type, str] = {str: "one", tuple: "two"}
    return words.get(type(text), type(text).__name__)


def _at_least(size: int, sizes: Sequence[int], most: int) -> int:
    """The smallest of `sizes` that is no smaller than `size`, but not above `most`."""
    return min(next((s for s in sizes if s >= size), most), most)


def load(
    path: str | Path,
    tokenizer: str | Path | Tokenizer | None = None,
    dtype: Any = "float32",
    factors: Literal["compute", "bfloat16"] = "compute",
) -> Encoder:
    """Loads a model: `encode`, `fill_mask` and `next_sentence` of `Encoder` run it.

    Args:
      path: a bertjax workdir or checkpoint, also gs://, whatever devices trained it; a Hugging Face
        folder of a BERT (safetensors); a TF1 checkpoint of google-research/bert, which alone needs
        TensorFlow.
      tokenizer: a folder with one, where it does not lie with the weights.
      dtype: of the computation: float32 or bfloat16, by name or as of JAX, or "auto" = bfloat16 on
        GPU and TPU.
      factors: "bfloat16" rounds the factors of products with weights, for CPUs that multiply it
        faster than float32; the log says whether this one does.

    Returns:
      The `Encoder`, on JAX's default device.

    Raises:
      WeightsError: the folder holds no weights of a BERT that bertjax has; says which file, key or
        tensor.
      TokenizerError: there is no tokenizer, or not the one of the weights.
      CheckpointError: a bertjax checkpoint is corrupt.
      ConfigError: the device or the dtype does not go with `factors`.
      ValueError: `dtype` or `factors` is another.
    """
    name: Any = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    if name not in ("float32", "bfloat16", "auto"):
        raise ValueError(f'dtype={dtype!r}: expected "float32", "bfloat16" or "auto"')
    if factors not in ("compute", "bfloat16"):
        raise ValueError(f'factors={factors!r}: expected "compute" or "bfloat16"')
    given = load_folder(tokenizer) if isinstance(tokenizer, (str, Path)) else tokenizer
    weights = read_weights(path, given)
    assert weights.tokenizer is not None
    backend = jax.default_backend()
    config = dataclasses.replace(weights.config, dtype=name, factors=factors)
    config = without_gradients(config, backend, num_devices=1)
    check_backend(config, backend, num_devices=1)
    return Encoder(config, weights.params, weights.tokenizer, weights.labels, weights.task)
