import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent

# A job in the background of a shell ignores Ctrl-C, and so would the programs that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def restore_rng() -> Iterator[None]:
    """Global random states are left as they were found, so no test depends on the one before."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global state is what is guarded
    yield
    random.setstate(python_state)
    np.random.set_state(numpy_state)  # noqa: NPY002


@pytest.fixture(scope="session")
def testdata() -> Path:
    """The folder of real videos and annotations: VIDPREP_TESTDATA, or ../shared/testdata beside the checkout."""
    folder = Path(os.environ.get("VIDPREP_TESTDATA", ROOT.parent / "shared" / "testdata"))
    if not folder.is_dir():
        message = f"no real test data at {folder}; set VIDPREP_TESTDATA to its folder"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder
