"""Fine-tuning through the public command and `fine_tune`: what it learns, writes and refuses."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from commands import run_here
from folders import GOLDENS

from bertjax.config import (
    CheckpointConfig,
    EvalConfig,
    FineTuningConfig,
    LogConfig,
    ModelConfig,
    OptimizerConfig,
    Phase,
    TaskConfig,
)
from bertjax.fine_tuning import job as fine_tuning_job
from bertjax.fine_tuning.job import Examples, FineTuning, Scorer
from bertjax.fine_tuning.run import train_and_score
from bertjax.models import init_params
from bertjax.parallel.sharding import make_mesh, parameter_shardings
from bertjax.storage.workdir_lock import WorkdirInUseError, lock_workdir
from bertjax.tasks.registry import make_task
from bertjax.training.start import with_shardings
from bertjax.weights.bertjax_checkpoint import write_checkpoint
from bertjax.weights.formats import read_weights
from bertjax.weights.initial_params import initial_params
from bertjax.weights.weights import Weights, WeightsError

MODEL = ModelConfig(
    vocab_size=1_000,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    intermediate_size=32,
    max_positions=32,
    initializer_range=0.2,
)
HUGGING_FACE = GOLDENS / "hugging_face" / "encoder"
WORDS = ["value", "module", "object", "name", "list", "string", "class", "method", "file"]


@pytest.fixture(scope="module")
def start(wordpiece, tmp_path_factory):
    """A pre-trained model, for all that fine-tuning knows: a workdir with parameters."""
    folder = tmp_path_factory.mktemp("finetune") / "start"
    params = jax.tree.map(np.asarray, init_params(MODEL, 7))
    write_checkpoint(Weights("drawn", MODEL, params, wordpiece), folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Tiny files of every kind of task; a sentence is positive when it has the word `true`."""
    folder = tmp_path_factory.mktemp("finetune") / "files"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, count in (("train", 96), ("eval", 40)):
        rows, numbers, sentences, articles = [], [], [], []
        for i in range(count):
            words = list(rng.choice(WORDS, 6))
            truth, place = ("true", "false")[i % 2], int(rng.integers(6))
            words[place] = truth
            text = " ".join(words)
            rows.append(f"{text}\t{'good' if truth == 'true' else 'bad'}")
            numbers.append(f"{text}\t{i % 2 + 0.5}")
            tags = ["B-BOOL" if word == truth else "O" for word in words]
            sentences.append("\n".join(f"{w} {t}" for w, t in zip(words, tags, strict=True)))
            answer = {"text": truth, "answer_start": text.index(truth)}
            question = {"id": f"{name}{i}", "question": "which value?", "answers": [answer]}
            articles.append({"context": text, "qas": [question]})
        (folder / f"{name}.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
        (folder / f"{name}_numbers.tsv").write_text("sentence\tscore\n" + "\n".join(numbers) + "\n")
        (folder / f"{name}.conll").write_text("\n\n".join(sentences) + "\n")
        squad = {"version": "1.1", "data": [{"title": "t", "paragraphs": articles}]}
        (folder / f"{name}.json").write_text(json.dumps(squad))
    return folder


TASKS = {  # head -> task, options, files
    "classification": ("classification", {"text_column": "sentence"}, "{}.tsv"),
    "regression": (
        "regression",
        {"text_column": "sentence", "label_column": "score"},
        "{}_numbers.tsv",
    ),
    "tagging": ("ner", {}, "{}.conll"),
    "span": ("squad", {"max_query_length": 4, "doc_stride": 4}, "{}.json"),
}


def open_examples(files, wordpiece, head="classification"):
    name, options, pattern = TASKS[head]
    task = make_task(name, options)
    training = task.read(str(files / pattern.format("train")), needs_labels=True)
    task = task.with_labels(training)
    evaluation = task.read(str(files / pattern.format("eval")), needs_labels=True)
    return [Examples(task, x, wordpiece, 16) for x in (training, evaluation)]


def make_config(start, task, num_steps=12, direction="bidirectional", **changes):
    model = dataclasses.replace(
        MODEL,
        direction=direction,
        head=task.head,
        num_labels=task.num_labels,
        pooler=task.head in ("classification", "regression"),
    )
    config = FineTuningConfig(
        init_from=str(start),
        model=model,
        phases=(Phase(num_steps, 16, 8),),
        optimizer=OptimizerConfig(name="adamw", learning_rate=1e-2, warmup_steps=2),
        checkpoint=CheckpointConfig(every_steps=5, keep=1),
        eval=EvalConfig(every_steps=4),
        log=LogConfig(every_steps=1, tensorboard=False),
        task=TaskConfig(name=task.name, options=task.settings()["options"], batch_size=8),
    )
    return dataclasses.replace(config, **changes)


def read_json(path):
    return json.loads(path.read_text())


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def command(*arguments, **flags):
    flags = [f"--{name}={value}" for name, value in flags.items()]
    return [sys.executable, "-m", "bertjax.finetune", *arguments, *flags]


def finetune(*arguments, **flags):
    return run_here("finetune", *command(*arguments, **flags)[3:])


def of_sentences(start, files, folder, **flags):
    """The command on the classification files."""
    return finetune(**sentence_flags(start, files, folder) | flags)


def sentence_flags(start, files, folder):
    return {
        "task": "classification",
        "option": "text_column=sentence",
        "init_from": start,
        "train": files / "train.tsv",
        "eval": files / "eval.tsv",
        "workdir": folder,
        "max_length": 16,
    }


def test_columns_that_are_padding_in_every_row_are_left_out(files, wordpiece):
    task = make_task("ner", {})
    examples = task.read(str(files / "train.conll"), needs_labels=True)
    task = task.with_labels(examples)
    asked = Examples(task, examples, wordpiece, 32)
    longest = asked.arrays["attention_mask"].sum(axis=1).max()
    assert asked.max_length == -(-longest // 8) * 8 < 32
    assert asked.arrays["tag_ids"].shape == asked.arrays["input_ids"].shape
    assert asked.arrays["input_ids"].shape[1] == asked.max_length
    assert asked.sha256() == Examples(task, examples, wordpiece, asked.max_length).sha256()
    assert Examples(task, examples, wordpiece, 5).max_length == 5  # never more than asked for


# What a run leaves


@pytest.fixture(scope="module")
def command_run(start, files, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finetune") / "run"
    flags = sentence_flags(start, files, workdir)
    flags |= {"learning_rate": "1e-2", "batch_size": 8, "epochs": 5, "seed": 3}
    result = subprocess.run(command(**flags), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return workdir, result


def test_the_command_learns_a_word(command_run):
    workdir, result = command_run
    scores = read_json(workdir / "scores.json")
    assert scores["scores"]["accuracy"] >= 0.95
    assert (scores["task"], scores["main_metric"]) == ("classification", "accuracy")
    assert (scores["seed"], scores["batch_size"], scores["num_epochs"]) == (3, 8, 5)
    assert (
        "initialized from seed 3, because the source lacks them: classification_head"
        in result.stderr
    )
    assert "task classification: 96 training examples in 96 rows of " in result.stderr
    assert "oneDNN" not in result.stderr


def test_the_command_leaves_what_a_user_looks_for(command_run, files, wordpiece):
    workdir, _ = command_run
    predictions = read_lines(workdir / "predictions.jsonl")
    labels = [line.split("\t")[1] for line in (files / "eval.tsv").read_text().splitlines()[1:]]
    right = [p["label"] == label for p, label in zip(predictions, labels, strict=True)]
    assert np.mean(right) == read_json(workdir / "scores.json")["scores"]["accuracy"]
    assert read_json(workdir / "labels.json") == ["bad", "good"]
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
    evaluations = read_lines(workdir / "evals.jsonl")
    assert [line["step"] for line in evaluations] == [12, 24, 36, 48, 60]  # 96 rows, 8 a step
    best = max(evaluations, key=lambda line: line["heldout_accuracy"])
    assert read_json(workdir / "scores.json")["best_step"] == best["step"]
    kept = {path.name for path in (workdir / "checkpoints").glob("step_*")}
    assert kept == {f"step_{best['step']:08}", "step_00000060"}


def test_a_fine_tuned_workdir_is_loaded_by_its_name(command_run, files):
    import bertjax

    bert = bertjax.load(command_run[0])
    assert (bert.config.head, bert.labels) == ("classification", ("bad", "good"))


def test_a_broken_file_of_scores_is_named(command_run, tmp_path):
    shutil.copytree(command_run[0], tmp_path / "run")
    (tmp_path / "run" / "scores.json").write_text('{"best_st')
    with pytest.raises(WeightsError, match=r"scores\.json: cannot be read as JSON"):
        read_weights(tmp_path / "run")


# The same run, whatever happens to it


def computed(workdir):
    rates = ("sequences_per_second", "real_tokens_per_second")
    return [
        {k: v for k, v in line.items() if k not in rates}
        for line in read_lines(workdir / "metrics.jsonl")
    ]


@pytest.fixture(scope="module", params=["bidirectional", "left_to_right"])
def direction(request):
    return request.param


@pytest.fixture(scope="module")
def whole(start, files, wordpiece, tmp_path_factory, direction):
    """The workdir of a run of 12 steps that nothing interrupts, and how often it scored."""
    workdir = tmp_path_factory.mktemp("finetune") / "whole"
    examples = open_examples(files, wordpiece)
    scored = []

    def run(scorer, params, run=Scorer.run):
        scored.append(run(scorer, params))
        return scored[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scorer, "run", run)
        config = make_config(start, examples[0].task, direction=direction)
        assert train_and_score(config, workdir, *examples, wordpiece).exit_code == 0
    return workdir, len(scored)


@pytest.fixture(scope="module")
def four_steps(start, files, wordpiece, tmp_path_factory):
    """The workdir of the same run, ended after 4 steps; tests go on with copies of it."""
    workdir = tmp_path_factory.mktemp("finetune") / "four_steps"
    examples = open_examples(files, wordpiece)
    config = dataclasses.replace(make_config(start, examples[0].task), num_steps=4)
    assert train_and_score(config, workdir, *examples, wordpiece).exit_code == 0
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("stops", [[4], [4, 7]])
def test_stopped_and_continued_is_the_same_run(
    start, files, wordpiece, tmp_path, whole, direction, stops
):
    examples = open_examples(files, wordpiece)
    config = make_config(start, examples[0].task, direction=direction)
    for stop in stops:
        some = dataclasses.replace(config, num_steps=stop)
        assert train_and_score(some, tmp_path / "parts", *examples, wordpiece).exit_code == 0
    assert train_and_score(config, tmp_path / "parts", *examples, wordpiece).exit_code == 0
    workdirs = whole[0], tmp_path / "parts"
    assert computed(workdirs[1]) == computed(workdirs[0])
    hashes = [read_json(workdir / "summary.json")["params_sha256"] for workdir in workdirs]
    assert hashes[0] == hashes[1]
    predictions = [read_lines(workdir / "predictions.jsonl") for workdir in workdirs]
    assert predictions[0] == predictions[1]


@pytest.mark.slow
def test_scores_of_an_earlier_end_go_when_the_run_goes_on(
    start, files, wordpiece, tmp_path, monkeypatch, four_steps
):
    """They name a checkpoint that may be removed before the next end."""
    examples = open_examples(files, wordpiece)
    config = make_config(start, examples[0].task)
    shutil.copytree(four_steps, tmp_path, dirs_exist_ok=True)
    assert read_json(tmp_path / "scores.json")["best_step"] == 4

    def fail(job, phase_index, params):
        raise RuntimeError("killed")

    monkeypatch.setattr(FineTuning, "evaluate", fail)
    with pytest.raises(RuntimeError, match="killed"):
        train_and_score(config, tmp_path, *examples, wordpiece)
    assert not (tmp_path / "scores.json").exists()
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000004")
    assert read_weights(tmp_path).source.endswith("step_00000005")


@pytest.mark.slow
def test_labels_are_those_of_the_run_whatever_was_tried_before(start, files, wordpiece, tmp_path):
    labels = tmp_path / "labels.json"
    labels.write_text('["of", "another"]')  # of a run that ended before its first checkpoint
    examples = open_examples(files, wordpiece)
    config = dataclasses.replace(make_config(start, examples[0].task), num_steps=1)
    with lock_workdir(tmp_path), pytest.raises(WorkdirInUseError):
        train_and_score(config, tmp_path, *examples, wordpiece)
    assert read_json(labels) == ["of", "another"]
    assert train_and_score(config, tmp_path, *examples, wordpiece).exit_code == 0
    assert read_json(labels) == ["bad", "good"]
    labels.unlink()
    longer = dataclasses.replace(config, num_steps=2)
    assert train_and_score(longer, tmp_path, *examples, wordpiece).exit_code == 0
    assert read_json(labels) == ["bad", "good"]

    other = tmp_path / "regression"
    other.mkdir()
    (other / "labels.json").write_text('["of", "another"]')
    examples = open_examples(files, wordpiece, "regression")
    config = dataclasses.replace(make_config(start, examples[0].task), num_steps=1)
    assert train_and_score(config, other, *examples, wordpiece).exit_code == 0
    assert read_weights(other).labels == ()


@pytest.mark.slow
def test_other_examples_to_evaluate_on_are_refused(start, files, wordpiece, tmp_path, four_steps):
    """The best checkpoint would be chosen by scores of two files."""
    training, evaluation = open_examples(files, wordpiece)
    config = make_config(start, training.task)
    shutil.copytree(four_steps, tmp_path, dirs_exist_ok=True)
    other = Examples(training.task, evaluation.examples[1:], wordpiece, 16)
    with pytest.raises(ValueError, match=r"settings \(the evaluation examples \(--eval\): '"):
        train_and_score(config, tmp_path, training, other, wordpiece)


@pytest.mark.slow
@pytest.mark.parametrize("head", TASKS)
def test_every_head_trains_predicts_and_scores(start, files, wordpiece, tmp_path, head, direction):
    examples = open_examples(files, wordpiece, head)
    config = make_config(start, examples[0].task, num_steps=6, direction=direction)
    assert train_and_score(config, tmp_path, *examples, wordpiece).exit_code == 0
    scores = read_json(tmp_path / "scores.json")["scores"]
    assert np.isfinite(list(scores.values())).all()
    assert examples[0].task.main_metric in scores
    assert len(read_lines(tmp_path / "predictions.jsonl")) == 40
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert len(lines) == 6
    assert ("accuracy" in lines[0]) == (head != "regression")
    if head == "span":
        answers = read_json(tmp_path / "predictions.json")
        assert set(answers) == {f"eval{i}" for i in range(40)}
    # The shell says the same of the same file.
    evaluation = files / TASKS[head][2].format("eval")
    arguments = [f"--model={tmp_path}", f"--examples={evaluation}", "--format=json"]
    result = subprocess.run(
        [sys.executable, "-m", "bertjax.predict", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    found = list(map(json.loads, result.stdout.splitlines()))
    names = {"span": ("id",), "tagging": ("words", "tags"), "regression": ("value",)}
    for ours, theirs in zip(found, read_lines(tmp_path / "predictions.jsonl"), strict=True):
        if head == "span":
            assert ours["answer"] == theirs["text"]
        for name in names.get(head, ("label",)):
            assert (
                ours[name] == pytest.approx(theirs[name], abs=1e-5)
                if name == "value"
                else (ours[name] == theirs[name])
            )
        assert ours["text"].split()


@pytest.mark.slow
def test_the_best_checkpoint_is_scored_and_kept(start, files, wordpiece, tmp_path):
    """Where the evaluation has the labels the other way round, the best is not the last."""
    swapped = tmp_path / "eval.tsv"
    lines = (files / "eval.tsv").read_text().replace("good", "x").replace("bad", "good")
    swapped.write_text(lines.replace("\tx", "\tbad"))
    training, evaluation = open_examples(files, wordpiece)
    task = training.task
    evaluation = Examples(task, task.read(str(swapped), needs_labels=True), wordpiece, 16)
    config = make_config(start, task, num_steps=60)
    assert train_and_score(config, tmp_path / "run", training, evaluation, wordpiece).exit_code == 0
    tmp_path /= "run"
    result = read_json(tmp_path / "scores.json")
    accuracies = [line["heldout_accuracy"] for line in read_lines(tmp_path / "evals.jsonl")]
    assert result["scores"]["accuracy"] == max(accuracies) > accuracies[-1]
    assert result["best_step"] < 60
    # The run kept what it had found; a new process reads the checkpoint, and finds the same.
    predictions = read_lines(tmp_path / "predictions.jsonl")
    for name in ("predictions.jsonl", "scores.json"):
        (tmp_path / name).unlink()
    assert train_and_score(config, tmp_path, training, evaluation, wordpiece).exit_code == 0
    assert read_lines(tmp_path / "predictions.jsonl") == predictions
    assert read_json(tmp_path / "scores.json")["scores"] == result["scores"]
    # What starts from this run starts from the best one too.
    best = read_weights(tmp_path)
    assert f"step_{result['best_step']:08}" in best.source
    abstract = with_shardings(best.params, make_mesh(config.mesh, jax.devices()[:1]))
    found = initial_params(
        str(tmp_path),
        best.config,
        abstract,
        seed=5,
        tokenizer_hash=wordpiece.hash,
        labels=best.labels,
    )
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, found, best.params)))


@pytest.mark.slow
def test_nothing_is_scored_twice(whole):
    workdir, num_scored = whole
    assert num_scored == len(read_lines(workdir / "evals.jsonl")) > 1


@pytest.mark.slow
@pytest.mark.parametrize("head", ["regression", "tagging", "span"])
def test_scores_do_not_depend_on_how_rows_are_batched(wordpiece, tmp_path, monkeypatch, head):
    """Two lengths of rows, in turns: batches of few are cut to the short ones and sorted."""
    long, short = " ".join([*WORDS, "true"]), "true value"
    texts = [long, short] * 8
    if head == "regression":
        rows = [f"{text}\t{i}" for i, text in enumerate(texts)]
        (tmp_path / "eval_numbers.tsv").write_text("\n".join(["sentence\tscore", *rows]) + "\n")
    elif head == "tagging":
        tags = ["\n".join(f"{word} B-{word}" for word in text.split()) for text in texts]
        (tmp_path / "eval.conll").write_text("\n\n".join(tags) + "\n")
    else:
        paragraphs = [
            {
                "context": text,
                "qas": [
                    {
                        "id": str(i),
                        "question": "which?",
                        "answers": [{"text": "true", "answer_start": text.index("true")}],
                    }
                ],
            }
            for i, text in enumerate(texts)
        ]
        (tmp_path / "eval.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    name, options, pattern = TASKS[head]
    task = make_task(name, options)
    examples = task.read(str(tmp_path / pattern.format("eval")), needs_labels=True)
    task = task.with_labels(examples)
    evaluation = Examples(task, examples, wordpiece, 32)
    model = dataclasses.replace(
        MODEL, head=head, num_labels=task.num_labels, pooler=head == "regression", dtype="float32"
    )
    mesh, params = make_mesh(FineTuningConfig().mesh, jax.devices()[:1]), init_params(model, 0)
    whole = Scorer(evaluation, model, mesh).run(params)
    monkeypatch.setattr(fine_tuning_job, "_TOKENS_CPU", evaluation.max_length)
    scorer = Scorer(evaluation, model, mesh)
    shapes = {(len(positions), length) for positions, length in scorer._batches}
    assert len(shapes) > 1
    found = scorer.run(params)
    rounded = [json.loads(json.dumps(p), parse_float=lambda x: round(float(x), 4)) for p in
               (whole.predictions, found.predictions)]  # fmt: skip
    assert rounded[0] == rounded[1]
    assert len({json.dumps(p) for p in found.predictions}) > 1
    for metric, value in whole.scores.items():
        # The softmax of a span is over all positions of a row, padding included.
        if (head, metric) != ("span", "loss"):
            assert found.scores[metric] == pytest.approx(value, rel=1e-5), metric


def test_the_encoder_comes_from_the_start_and_the_head_from_the_seed(start, wordpiece):
    model = dataclasses.replace(MODEL, head="classification", num_labels=3, dtype="float32")
    mesh = make_mesh(FineTuningConfig().mesh, jax.devices()[:1])
    shapes = jax.eval_shape(lambda: init_params(model, 0))
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        parameter_shardings(shapes, mesh),
    )
    found = initial_params(str(start), model, abstract, seed=5, tokenizer_hash=wordpiece.hash)
    before, drawn = init_params(MODEL, 7), init_params(model, 5)
    for part, expected in (("embeddings", before), ("encoder", before), ("pooler", before)):
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, found[part], expected[part]))), part
    kernel = found["classification_head"]["kernel"]
    # The last bit may differ from what is drawn uncompiled.
    np.testing.assert_allclose(kernel, drawn["classification_head"]["kernel"], rtol=1e-6)


# Several runs


@pytest.mark.slow
def test_lists_make_a_run_for_each_combination(start, files, tmp_path):
    result = of_sentences(
        start, files, tmp_path, learning_rate="1e-3,1e-2", seed="0,1", epochs=1, batch_size=24
    )
    assert result.returncode == 0, result.stderr
    content = read_json(tmp_path / "table.json")
    assert len(content["runs"]) == 4
    for setting in content["settings"]:
        values = [
            run["scores"]["accuracy"]
            for run in content["runs"]
            if run["learning_rate"] == setting["learning_rate"]
        ]
        accuracy = setting["scores"]["accuracy"]
        assert accuracy["values"] == values
        assert accuracy["mean"] == pytest.approx(np.mean(values))
        assert accuracy["deviation"] == pytest.approx(np.std(values, ddof=1))
        assert f"{accuracy['mean']:.4f} ± {accuracy['deviation']:.4f}" in result.stdout
    means = [setting["scores"]["accuracy"]["mean"] for setting in content["settings"]]
    assert means == sorted(means, reverse=True)


@pytest.mark.slow
def test_a_run_of_a_list_that_diverges_leaves_the_others_and_is_named(start, files, tmp_path):
    # Rates that six digits do not tell apart, too.
    rates = "1e30,1e-3,1.0000001e-3"
    result = of_sentences(start, files, tmp_path, learning_rate=rates, epochs=1, batch_size=24)
    assert result.returncode == 1
    content = read_json(tmp_path / "table.json")
    assert sorted(x["learning_rate"] for x in content["settings"]) == [1e-3, 1.0000001e-3]
    assert list(content["diverged"]) == ["lr_1e+30_batch_24_epochs_1_seed_0"]
    assert "0.0010000001" in result.stdout
    *_, error = result.stderr.splitlines()
    assert error.startswith("error: lr_1e+30_batch_24_epochs_1_seed_0: step 2: loss nan")


# What is refused, before any training


@pytest.mark.slow
def test_a_list_of_runs_that_is_preempted_goes_on_where_it_was(start, files, tmp_path):
    flags = sentence_flags(start, files, tmp_path) | {"config.log.every_steps": 1}
    again = command(**flags, seed="0,1", epochs=20, batch_size=24)
    with subprocess.Popen(again, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 200
        while not any(p.read_text() for p in tmp_path.glob("*_seed_1/metrics.jsonl")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=100)
    assert process.returncode == 75, errors
    assert not (tmp_path / "table.json").exists()
    [first] = tmp_path.glob("*_seed_0/scores.json")
    before = read_json(first)
    assert not list(tmp_path.glob("*_seed_1/scores.json"))
    result = subprocess.run(again, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert read_json(first) | {"seconds": 0} == before | {"seconds": 0}
    assert read_json(tmp_path / "table.json")["settings"][0]["scores"]["accuracy"]["values"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"task": "clasification"}, "did you mean 'classification'?"),
        ({"option": "text_column=sentense"}, "sentense"),
        ({"max_length": 33}, "--max_length=33 is beyond the 32 positions"),
        ({"max_length": 0}, "--max_length=0"),
        ({"batch_size": 0}, "--batch_size=0: expected different positive numbers"),
        ({"epochs": "1,inf"}, "--epochs=1,inf: expected different positive numbers"),
        ({"warmup_share": 2}, "--warmup_share=2"),
        ({"init_from": "no/such"}, "--init_from: no/such: no such folder"),
        ({"init_from": "hf:no/such"}, "--init_from: no/such/config.json: no such file"),
        ({"init_from": HUGGING_FACE}, f"is given as --init_from=hf:{HUGGING_FACE}"),
        ({"workdir": __file__}, "is a file; name a folder"),
        ({"learning_rate": "fast"}, "--learning_rate=fast: expected different positive numbers"),
        ({"workdir": ""}, "--workdir is missing"),
        ({"config.mesh.fdsp": 2}, "did you mean 'fsdp'?"),
        ({"config.optimizer.learning_rate": 1e-3}, "learning_rate is decided by other flags"),
        ({"config.task.name": "x"}, "--config.task.name is decided by other flags"),
        ({"config.model.num_labels": 5}, "--config.model.num_labels is decided by other flags"),
        ({"config.phases[0].num_steps": 5}, "--config.phases[0].num_steps is decided by"),
        ({"config": "small"}, "--config=small: there is no recipe here; fields are set as"),
        ({"config.eval.max_rows": 8}, "--config.eval.max_rows is decided by other flags or the"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_no_work(start, files, tmp_path, flags, message):
    result = of_sentences(start, files, tmp_path / "run", **flags)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_pairs_need_two_token_types(files, wordpiece, tmp_path):
    config = dataclasses.replace(MODEL, num_token_types=1, head="encoder")
    params = jax.tree.map(np.asarray, init_params(config, 0))
    write_checkpoint(Weights("drawn", config, params, wordpiece), tmp_path / "start")
    pairs = {"option": "text_column=sentence"}
    flags = sentence_flags(tmp_path / "start", files, tmp_path / "run") | pairs
    result = finetune("--option=text_pair_column=sentence", **flags)
    assert result.returncode == 2
    assert "has one token type (model.num_token_types = 1)" in result.stderr
    assert not (tmp_path / "run").exists()


def test_an_unknown_label_is_named_with_its_line(start, files, tmp_path):
    wrong = tmp_path / "eval.tsv"
    wrong.write_text("sentence\tlabel\na true value\tgood\na false one\tugly\n")
    result = of_sentences(start, files, tmp_path / "run", eval=wrong)
    assert result.returncode == 2
    assert f"{wrong}:3: unknown label 'ugly'; the labels are bad, good" in result.stderr
    assert """--option='label_names=["bad", "good", "ugly"]'""" in result.stderr


def test_a_workdir_of_another_task_is_refused_in_one_line(start, files, command_run):
    """The best checkpoint and the files of the run that is there stay as they are."""
    workdir, _ = command_run
    before = {path: path.read_bytes() for path in workdir.glob("*.json")}
    arguments = {"task": "ner", "init_from": start, "workdir": workdir, "max_length": 16}
    arguments |= {"train": files / "train.conll", "eval": files / "eval.conll"}
    result = finetune(**arguments)
    assert result.returncode == 2
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "belongs to a run with other settings" in error
    assert "config.task.name: 'classification' there, 'ner' here" in error
    assert before == {path: path.read_bytes() for path in workdir.glob("*.json")}


@pytest.mark.slow
def test_other_weights_to_begin_with_are_refused_and_a_moved_folder_is_not(
    start, files, command_run, wordpiece, tmp_path
):
    workdir, _ = command_run
    before = {path: path.read_bytes() for path in workdir.glob("*.json")}
    flags = sentence_flags(start, files, workdir)
    flags |= {"learning_rate": "1e-2", "batch_size": 8, "epochs": 5, "seed": 3}
    params = jax.tree.map(np.asarray, init_params(MODEL, 8))
    write_checkpoint(Weights("others", MODEL, params, wordpiece), tmp_path / "others")
    result = finetune(**flags | {"init_from": tmp_path / "others"})
    assert result.returncode == 2
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "the weights that it began with (--init_from): '" in error
    assert before == {path: path.read_bytes() for path in workdir.glob("*.json")}
    shutil.copytree(start, tmp_path / "moved")
    result = finetune(**flags | {"init_from": tmp_path / "moved"})
    assert result.returncode == 0, result.stderr


def test_another_run_in_the_workdir_is_refused(start, files, wordpiece, tmp_path, command_run):
    examples = open_examples(files, wordpiece)
    config = make_config(start, examples[0].task)
    with pytest.raises(
        ValueError, match=r"belongs to a run with other settings(.|\n)*config\.seed"
    ):
        train_and_score(config, command_run[0], *examples, wordpiece)
