"""Tasks that read tensorflow-datasets: a data set made here, in the features of the real ones."""

import numpy as np
import pytest

from bertjax.data.corpus.blocks import CorpusError
from bertjax.data.corpus.tfds_records import read_tfds_records
from bertjax.tasks.registry import make_task
from bertjax.tasks.task import TaskError


@pytest.fixture(scope="module")
def data_sets(tmp_path_factory):
    """The folder of two tiny data sets, tiny_reviews and tiny_questions."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import constants

    features = tfds.features

    class TinyReviews(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            label = features.ClassLabel(names=["negative", "positive"])
            columns = {"sentence": features.Text(), "label": label, "idx": np.int32}
            return tfds.core.DatasetInfo(builder=self, features=features.FeaturesDict(columns))

        def _split_generators(self, manager):
            return {"train": self._generate_examples(1), "test": self._generate_examples(-1)}

        def _generate_examples(self, label):
            yield 0, {"sentence": "Caf\u00e9 film", "label": label, "idx": 0}
            yield 1, {"sentence": "bad plot", "label": min(label, 0), "idx": 1}

    class TinyQuestions(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            answer = {"text": features.Text(), "answer_start": np.int32}
            columns = {name: features.Text() for name in ("id", "context", "question")}
            columns["answers"] = features.Sequence(answer)
            return tfds.core.DatasetInfo(builder=self, features=features.FeaturesDict(columns))

        def _split_generators(self, manager):
            return {"train": self._generate_examples(4), "validation": self._generate_examples(3)}

        def _generate_examples(self, start):
            answers = {"text": ["cat", "The cat"], "answer_start": [start, 0]}
            question = {"id": "q", "context": "The cat", "question": "Who?", "answers": answers}
            yield 0, question

    folder = str(tmp_path_factory.mktemp("tfds"))
    patch = pytest.MonkeyPatch()
    patch.setattr(constants, "DATA_DIR", folder)
    yield folder
    patch.undo()


def test_records_are_plain(data_sets):
    records = list(read_tfds_records("tfds:tiny_reviews:train", data_sets))
    assert {r["sentence"]: (r["label"], r["idx"]) for r in records} == {
        "Caf\u00e9 film": ("positive", 0),
        "bad plot": ("negative", 1),
    }
    hidden = list(read_tfds_records("tfds:tiny_reviews:test", data_sets))
    assert [record["label"] for record in hidden] == [None, None]
    with pytest.raises(CorpusError, match=r"tfds:tiny_reviews: expected tfds:NAME/CONFIG:SPLIT"):
        list(read_tfds_records("tfds:tiny_reviews", data_sets))


def test_classification(data_sets):
    task = make_task("sst2")
    examples = task.read("tfds:tiny_reviews:train", needs_labels=True)
    assert {example.text: example.label for example in examples} == {
        "Caf\u00e9 film": "1",
        "bad plot": "0",
    }
    assert len(task.read("tfds:tiny_reviews:test", needs_labels=False)) == 2
    with pytest.raises(TaskError, match=r"tfds:tiny_reviews:test:1: has no label"):
        task.read("tfds:tiny_reviews:test", needs_labels=True)
    with pytest.raises(TaskError, match=r"no column 'sentence1'; did you mean 'sentence'\?"):
        make_task("rte").read("tfds:tiny_reviews:train", needs_labels=True)
    with pytest.raises(TaskError, match="no_such_data_set:train: TFDS cannot open it"):
        task.read("tfds:no_such_data_set:train", needs_labels=True)


def test_questions(data_sets):
    (question,) = make_task("squad").read("tfds:tiny_questions:train", needs_labels=True)
    assert (question.id, question.question, question.context) == ("q", "Who?", "The cat")
    assert [(answer.text, answer.start) for answer in question.answers] == [
        ("cat", 4),
        ("The cat", 0),
    ]
    with pytest.raises(TaskError, match=r"question q: found ' ca' at character 3"):
        make_task("squad").read("tfds:tiny_questions:validation", needs_labels=True)
