"""How probable a model finds a text: what `Encoder.score` computes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bertjax.config import ModelConfig
from bertjax.data.texts import Row, Text, TextError, encode_text, pad_rows
from bertjax.data.tokenizers.vocabulary import Tokenizer
from bertjax.heads import HEADS, NEXT_SENTENCE
from bertjax.models import BertEncoder, MaskedLanguageModelHead, apply_model, make_model
from bertjax.objectives.causal import position_chunks
from bertjax.parallel.partition import gather_params

_WHOLE = 2**31  # tokens; no text is cut
_CHUNK = 1_024  # texts scored at a time, so that memory does not grow with their number

# Lengths of rows to (their indices, rows and tokens per row of the batch), for each batch.
Batches = Callable[[Sequence[int]], Iterable[tuple[list[int], int, int]]]


class Score(NamedTuple):
    """The log-likelihood of a text, token by token, in nats.

    Attributes:
      log_likelihood: the sum of `log_probabilities`. By a masked model it is a
        pseudo-log-likelihood: each token is predicted from the tokens on both sides, and the sum is
        no logarithm of a probability of the text.
      num_tokens: how many tokens were scored; 0 for a text without any, whose log-likelihood is 0.
      pieces: the scored tokens, in their order.
      log_probabilities: of each of them.
    """

    log_likelihood: float
    num_tokens: int
    pieces: list[str]
    log_probabilities: list[float]

    @property
    def per_token(self) -> float:
        """Mean of the log-probabilities; exp(-per_token) is the perplexity. NaN without tokens."""
        return self.log_likelihood / self.num_tokens if self.num_tokens else math.nan


class ScoredRow(NamedTuple):
    """A row, and the places of its tokens that are scored: [begin, end)."""

    row: Row
    begin: int
    end: int


class Scorer:
    """Scores texts with one model; each shape of a batch is compiled once."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, batches: Batches):
        """Compiles nothing yet.

        Args:
          config: of the model, resolved.
          tokenizer: of the model.
          batches: how rows are put together.
        """
        self._config, self._tokenizer, self._batches = config, tokenizer, batches
        self._of_masked = jax.jit(functools.partial(_log_probabilities_of_masked, config))
        self._of_next = jax.jit(functools.partial(_log_probabilities_of_next, config))

    def rows(self, texts: Iterable[Text], with_end: bool = False) -> list[ScoredRow]:
        """The row of each text; see `Encoder.score` for what is scored.

        Raises:
          TextError: a text is longer than the positions of the model.
          TypeError: a text is neither a str nor a tuple of two.
        """
        return [self._row(i, text, with_end) for i, text in enumerate(texts)]

    def _row(self, index: int, text: Text, with_end: bool) -> ScoredRow:
        row = encode_text(self._tokenizer, text, _WHOLE)
        begin = 1
        if isinstance(text, tuple):
            begin = row.num_first
            head = HEADS[self._config.head]
            if not (self._config.next_sentence and NEXT_SENTENCE in head.verbs):
                # Such a model has seen no [SEP] within a row.
                begin -= 1
                ids = np.delete(row.ids, begin)
                row = Row(ids, len(ids), is_cut=False)
        if len(row.ids) > self._config.max_positions:
            raise TextError(
                index,
                f"has {len(row.ids):,} tokens with the special ones, which is more than the "
                f"{self._config.max_positions:,} positions of this model; its score would be that "
                "of a part, so split it",
            )
        return ScoredRow(row, begin, len(row.ids) - (not with_end))

    def scores(
        self, params: Any, rows: Sequence[ScoredRow], mask_rest_of_word: bool
    ) -> Iterator[Score]:
        """Yields the score of each row.

        Args:
          params: of the model.
          rows: of `rows`.
          mask_rest_of_word: of a masked model; see `Encoder.score`.
        """
        for begin in range(0, len(rows), _CHUNK):
            chunk = rows[begin : begin + _CHUNK]
            if HEADS[self._config.head].predicts_next:
                values = self._left_to_right(params, chunk)
            else:
                values = self._masked(params, chunk, mask_rest_of_word)
            yield from map(self._score, chunk, values)

    def _left_to_right(self, params: Any, rows: Sequence[ScoredRow]) -> list[np.ndarray]:
        """The log-probabilities of each row's scored tokens; all of a row in one pass."""
        found = [np.zeros(0, np.float32)] * len(rows)
        batches = self._batches([len(x.row.ids) for x in rows])
        for chosen, values in _behind(self._run(params, rows, *batch) for batch in batches):
            for i, line in zip(chosen, values, strict=False):
                found[i] = line[rows[i].begin - 1 : rows[i].end - 1]
        return found

    def _run(
        self, params: Any, rows: Sequence[ScoredRow], chosen: list[int], size: int, length: int
    ) -> tuple[list[int], jax.Array]:
        return chosen, self._of_next(params, *self._padded(rows, chosen, size, length))

    def _padded(
        self, rows: Sequence[ScoredRow], chosen: Iterable[int], size: int, length: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return pad_rows([rows[i].row for i in chosen], size, length, self._tokenizer.pad_id)

    def _masked(
        self, params: Any, rows: Sequence[ScoredRow], mask_rest_of_word: bool
    ) -> list[np.ndarray]:
        """The same of a masked model: one masked copy of the row for each scored token."""
        copies = np.concatenate([self._copies(i, *x) for i, x in enumerate(rows)])
        if not mask_rest_of_word:
            copies[:, 2] = copies[:, 1] + 1
        found = np.zeros(len(copies), np.float32)
        batches = self._batches([len(rows[i].row.ids) for i in copies[:, 0].tolist()])
        outputs = (self._run_copies(params, rows, copies, *batch) for batch in batches)
        for chosen, values in _behind(outputs):
            found[chosen] = values[: len(chosen), 0]
        return np.split(found, np.cumsum([x.end - x.begin for x in rows])[:-1])

    def _copies(self, number: int, row: Row, begin: int, end: int) -> np.ndarray:
        """int64 [end - begin, 3]: the row's number, the token, and the end of the token's word."""
        places = np.arange(begin, end)
        begins_word = np.append(self._tokenizer.word_starts[row.ids[begin + 1 : end]], True)
        ends = np.where(begins_word[: len(places)], places + 1, end)
        ends = np.minimum.accumulate(ends[::-1])[::-1]
        return np.stack([np.full_like(places, number), places, ends], axis=1)

    def _run_copies(
        self,
        params: Any,
        rows: Sequence[ScoredRow],
        copies: np.ndarray,
        chosen: list[int],
        size: int,
        length: int,
    ) -> tuple[list[int], jax.Array]:
        numbers, places, ends = copies[chosen].T
        inputs = self._padded(rows, numbers.tolist(), size, length)
        positions, targets = np.zeros((2, size, 1), np.int32)
        positions[: len(chosen), 0] = places
        targets[: len(chosen), 0] = inputs[0][np.arange(len(chosen)), places]
        columns = np.arange(length)
        is_masked = (columns >= places[:, None]) & (columns < ends[:, None])
        inputs[0][: len(chosen)][is_masked] = self._tokenizer.mask_id
        return chosen, self._of_masked(params, *inputs, positions, targets)

    def _score(self, row: ScoredRow, values: np.ndarray) -> Score:
        ids = row.row.ids[row.begin : row.end].tolist()
        found = values.tolist()
        return Score(math.fsum(found), len(ids), [*map(self._tokenizer.id_to_piece, ids)], found)


def _log_probabilities_of_masked(
    config: ModelConfig,
    params: Any,
    input_ids: jax.Array,
    token_type_ids: jax.Array,
    attention_mask: jax.Array,
    positions: jax.Array,
    targets: jax.Array,
) -> jax.Array:
    """Float32 [b, m]: log-probabilities of the targets [b, m] at the positions [b, m], in nats."""
    inputs = (input_ids, token_type_ids, attention_mask, positions)
    logits, _ = apply_model(make_model(config), params, *inputs)
    return _of_targets(logits, targets)


def _log_probabilities_of_next(
    config: ModelConfig,
    params: Any,
    input_ids: jax.Array,
    token_type_ids: jax.Array,
    attention_mask: jax.Array,
) -> jax.Array:
    """Float32 [b, t]: log-probability of the token after each token [b, t], in nats.

    Logits exist for a part of the positions at a time.
    """
    params = gather_params(params)
    encoder, head = BertEncoder(config), MaskedLanguageModelHead(config)
    inputs = (input_ids, token_type_ids, attention_mask)
    hidden_states, _ = encoder.apply({"params": params}, *inputs)
    table = encoder.apply({"params": params}, method="word_table")

    def of_chunk(chunk: tuple[jax.Array, jax.Array]) -> jax.Array:
        hidden_states, targets = chunk
        logits: Any = head.apply({"params": params["mlm_head"]}, hidden_states, None, table)
        return _of_targets(logits, targets)

    targets = jnp.roll(input_ids, -1, axis=1)
    chunks = jax.lax.map(of_chunk, jax.tree.map(position_chunks, (hidden_states, targets)))
    found = jnp.moveaxis(chunks, 0, 1)  # [b, n, c]: n chunks of c positions
    return found.reshape(len(input_ids), -1)[:, : input_ids.shape[1]]


def _of_targets(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Float32 [b, m]: the log-softmax of float32 logits [b, m, v] at ids [b, m]."""
    of_targets = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return of_targets - jax.nn.logsumexp(logits, axis=-1)


def _behind(
    batches: Iterator[tuple[list[int], jax.Array]],
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Fetches each batch after the next has been dispatched, so that the device does not wait."""
    last: tuple[list[int], jax.Array] | None = None
    for batch in batches:
        if last:
            yield last[0], np.asarray(last[1])
        last = batch
    if last:
        yield last[0], np.asarray(last[1])
