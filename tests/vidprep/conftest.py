import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.vidprep.s3 import BUCKET, serve_s3
from vidprep.miniature import Miniature, make_miniature

Make = Callable[[str], Miniature]


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Miniatures by the name of their data set; each is made once for all tests, and nobody writes into it."""
    made: dict[str, Miniature] = {}

    def make_once(name: str) -> Miniature:
        if name not in made:
            made[name] = make_miniature(name, tmp_path_factory.mktemp("miniatures") / name)
        return made[name]

    return make_once


@pytest.fixture(scope="session")
def s3_environment() -> Iterator[dict[str, str]]:
    """Where processes find the S3 server of this session."""
    with serve_s3() as environment:
        yield environment


@pytest.fixture
def s3_url(s3_environment: dict[str, str], request: pytest.FixtureRequest) -> str:
    """A prefix of a bucket, with nothing below it."""
    return f"s3://{BUCKET}/{abs(hash(request.node.nodeid))}"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[str], "subprocess.CompletedProcess[bytes]"]]]:
    """A small disk, and how to mount it otherwise."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)

    if os.geteuid() != 0 or mount("size=4m").returncode != 0:
        pytest.skip("mounting a disk needs root, and the right to")
    try:
        yield folder, lambda options: mount(f"remount,{options}")
    finally:
        subprocess.run(["umount", str(folder)], check=True)
