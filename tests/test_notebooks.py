"""The notebooks run from top to bottom, on a small model."""

import ast
import base64

import nbformat
import pytest
from folders import REPOSITORY
from nbclient import NotebookClient

FOLDER = REPOSITORY / "notebooks"


def run(name, folder, parameters):
    """The notebook after a run with other values in its cell of parameters."""
    notebook = nbformat.read(FOLDER / name, as_version=4)
    nbformat.validate(notebook)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    given = {line.split(" = ")[0] for line in cell.source.splitlines()}
    assert given == parameters.keys()
    cell.source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    resources = {"metadata": {"path": str(folder)}}
    return NotebookClient(notebook, timeout=300, resources=resources).execute()


def printed(notebook):
    """What its code cells print."""
    return "".join(
        output.text
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
    )


def pictures(notebook):
    """The PNG files that it shows."""
    return [
        base64.b64decode(output.data["image/png"])
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]


@pytest.mark.slow
def test_look_inside(whole_run, tmp_path):
    notebook = run("look_inside.ipynb", tmp_path, {"MODEL": str(whole_run)})
    text = printed(notebook)
    assert "2 layers, 16 wide, 2 heads each" in text
    assert text.count("%") == 4 * 5  # five predictions for each of four masks
    assert [picture[:4] for picture in pictures(notebook)] == [b"\x89PNG"] * 2


@pytest.mark.slow
def test_fine_tune_and_export(whole_run, tmp_path):
    parameters = {"MODEL": str(whole_run), "WORKDIR": str(tmp_path / "work"), "EPOCHS": 1}
    notebook = run("fine_tune_and_export.ipynb", tmp_path, parameters)
    text = printed(notebook)
    assert "\naccuracy: " in text
    assert len(pictures(notebook)) == 2
    assert "['BertForSequenceClassification'] {'0': 'asyncio'" in text
    [line] = [line for line in text.splitlines() if line.endswith("each record to a file.")]
    label, probability = line.split()[:2]
    there = next(
        output.data["text/plain"]
        for output in reversed(notebook.cells[-1].outputs)
        if "text/plain" in output.get("data", {})
    )
    answer = ast.literal_eval(there)
    assert label == answer["label"]
    assert float(probability) == pytest.approx(answer["probabilities"][label], abs=0.002)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.name)
def test_what_is_committed_was_run(path):
    """In order from a fresh kernel, with no error."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert pictures(notebook)
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]
