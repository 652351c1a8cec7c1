import os
import tempfile
from pathlib import Path

import pytest

# Runs of the same program in other processes and tests take it from here: most of their time is
# the compiler's. Set before jax is imported, and inherited by every command that a test starts.
_CACHE = tempfile.TemporaryDirectory(prefix="bertjax-compiled-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real corpora and vocabularies, which are not part of the repository."""
    default = Path(__file__).parent.parent.parent / "shared" / "data"
    folder = Path(os.environ.get("BERTJAX_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no test data in {folder}: set BERTJAX_TEST_DATA")
    return folder
