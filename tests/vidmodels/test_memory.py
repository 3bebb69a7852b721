import subprocess
import sys

import pytest

FAULTS = """
import resource
import sys
import torch
from vidmodels.memory import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def rounds(n):
    for _ in range(n):
        x, y = torch.ones(2**21), torch.ones(2**21)  # 8 MiB each
        del x, y
rounds(20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
rounds(10)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's options")
def test_memory_that_is_freed_is_used_again() -> None:
    counts = {
        how: int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "give")
    }
    assert counts["keep"] < 1000
    assert counts["keep"] <= counts["give"]
