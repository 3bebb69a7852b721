import re
from pathlib import Path

import numpy as np
import pytest

from tests.vidprep.load.folders import numbered_sources, write_shard_folder
from vidprep.types import Video

DOCUMENT = Path(__file__).parents[3] / "docs" / "loading.md"


def test_the_training_script_of_the_document_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert script is not None
    videos = [Video(video_id=f"v{k}", labels=(k % 2,)) for k in range(16)]
    sources = numbered_sources(tmp_path, videos, num_frames=12)
    for split in ("train", "val"):
        write_shard_folder(tmp_path / "shards", sources, split=split, num_classes=2, per_shard=8)
    monkeypatch.chdir(tmp_path)
    exec(compile(script[1], str(DOCUMENT), "exec"), {"__name__": "document"})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 0", "epoch 1"]
    assert all(np.isfinite(float(line.split()[-1].rstrip("%"))) for line in lines)
