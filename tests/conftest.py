"""Settings that must be in place before any test imports a library."""

import gc
import os

# State that is not plain JSON fails here and not in a user's checkpointer.
os.environ["LANGGRAPH_STRICT_MSGPACK"] = "true"
# The models are tiny: one thread is fastest, and two workers share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Nothing is fetched and nothing is reported anywhere.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["LANGSMITH_TRACING"] = "false"

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# What collection imports stays: to look for garbage in it took a fifth of the collection.
gc.disable()

# Shared machines: a slow example is no failure. The fast lane draws the same few every time.
settings.register_profile(
    "shared",
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
# `make test-random`, which CI runs too, draws more and new ones, and says how to draw one again.
settings.register_profile(
    "random",
    parent=settings.get_profile("shared"),
    max_examples=100,
    derandomize=False,
    print_blob=True,
)
settings.register_profile("thorough", parent=settings.get_profile("random"), max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "shared"))


def pytest_collection_finish() -> None:
    """Look for garbage among what the tests make, and not among what was there before them."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real public records and files beside the project; a test that needs them skips without."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder
