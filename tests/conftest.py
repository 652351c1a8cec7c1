import importlib.metadata
import os
import tempfile
from pathlib import Path

import pytest

# Fixtures wordpiece and sentence_piece; bucket; store and whole_run; vocabulary and corpus.
pytest_plugins = ["english", "buckets", "micro_runs", "prepare_runs"]

# Most of the tests' time would be the compiler's: it optimises less here, and takes from the cache
# what other tests and processes have compiled. Set before jax is imported; commands inherit it.
_XLA_FLAGS = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones do not know the flag
    _XLA_FLAGS += " --xla_cpu_use_fusion_emitters=false"  # a third less of the compiler's time
os.environ.setdefault("XLA_FLAGS", _XLA_FLAGS)
if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers share the cache of their parent
    _CACHE = tempfile.TemporaryDirectory(prefix="bertjax-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real corpora and vocabularies, which are not part of the repository."""
    default = Path(__file__).parent.parent.parent / "shared" / "data"
    folder = Path(os.environ.get("BERTJAX_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no test data in {folder}: set BERTJAX_TEST_DATA")
    return folder
