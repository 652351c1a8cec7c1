"""Where the tests and the repository are."""

import os
from pathlib import Path

HELPERS = Path(__file__).resolve().parent
TESTS = HELPERS.parent
REPOSITORY = TESTS.parent
GOLDENS = TESTS / "goldens"
RECIPE = str(TESTS / "recipes" / "micro.py")
# For commands that import a helper.
PYTHONPATH = f"{REPOSITORY}{os.pathsep}{HELPERS}"
