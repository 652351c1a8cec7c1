"""Recipes that build on others: from a checkout that is not installed, and installed."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bertjax.cli import recipes
from bertjax.config import Config, ConfigError

ROOT = Path(__file__).parent.parent.parent
RESULTS = sorted(
    str(path)
    for path in (ROOT / "docs" / "results").glob("*.py")
    if "get_config" in path.read_text()
)
# Where the folder of recipes is, and every recipe; an editable installation is out of the way.
LOAD = """
import json, sys
sys.meta_path = [x for x in sys.meta_path if "ditable" not in getattr(x, "__name__", "")]
from bertjax.cli import recipes
names = [*recipes.recipe_names(), *sys.argv[1:]]
found = {name: json.loads(recipes.load_recipe(name).to_json()) for name in names}
print(json.dumps([str(recipes._recipe_folder()), found]))
"""


def load_all(package: Path, cwd: Path) -> tuple[Path, dict]:
    """The folder of recipes and all configurations, with bertjax imported from `package`."""
    result = subprocess.run(
        [sys.executable, "-c", LOAD, *RESULTS],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(package)},
    )
    assert result.returncode == 0, result.stderr
    folder, found = json.loads(result.stdout)
    return Path(folder), found


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    folder, found = load_all(ROOT, tmp_path_factory.mktemp("elsewhere"))
    assert folder == ROOT / "configs"
    return found


def test_recipes_load_from_a_checkout_and_installed(tmp_path, checkout):
    assert len(RESULTS) == 4
    assert checkout.keys() == {"base", "large", "small", "tiny", *RESULTS}
    # As setup.cfg installs them: configs/ is bertjax.configs.
    site = tmp_path / "site"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "bertjax", site / "bertjax", ignore=ignore)
    shutil.copytree(ROOT / "configs", site / "bertjax" / "configs", ignore=ignore)
    folder, installed = load_all(site, tmp_path)
    assert folder == site / "bertjax" / "configs"
    assert installed == checkout


def test_a_recipe_has_what_it_builds_on_and_its_own(checkout):
    base, large, small = (checkout[name] for name in ("base", "large", "small"))
    assert (large["phases"], large["optimizer"]) == (base["phases"], base["optimizer"])
    assert (large["model"]["num_layers"], base["model"]["num_layers"]) == (24, 12)
    assert [phase["num_steps"] for phase in small["phases"]] == [100_000]
    on_gpu = checkout[str(ROOT / "docs" / "results" / "novels_wiki_gpu.py")]
    assert (on_gpu["model"]["vocab_size"], on_gpu["model"]["num_layers"]) == (8_192, 6)
    assert on_gpu["num_microbatches"] == Config().num_microbatches


def test_a_field_that_a_recipe_names_wrongly_is_named(tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from bertjax import load_recipe\n\n\ndef get_config():\n"
        "    return load_recipe('tiny', {'model.num_layer': 3})\n"
    )
    with pytest.raises(ConfigError, match=re.escape("did you mean 'num_layers'?")):
        recipes.load_recipe(str(recipe))
