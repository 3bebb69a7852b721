"""An S3 server of its own, spoken to over HTTP on a free port."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vidprep.workers import end_idle

__all__ = ["BUCKET", "contents", "file_system", "serve_s3"]

BUCKET = "bucket"


@contextmanager
def serve_s3() -> Iterator[dict[str, str]]:
    """Serve an empty bucket; the environment with which s3fs, and processes that are started, find it."""
    from moto.server import ThreadedMotoServer  # takes a while, and few tests need it

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    end_idle()  # worker processes that wait for work were started without it
    try:
        file_system().mkdir(BUCKET)
        yield environment
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        end_idle()
        server.stop()


def file_system() -> Any:
    """The file system that vidprep uses, too."""
    from fsspec.core import url_to_fs

    return url_to_fs(f"s3://{BUCKET}", use_listings_cache=False)[0]


def contents(url: str) -> dict[str, bytes]:
    """Name -> content of the objects directly below a URL."""
    system = file_system()
    paths = [entry["name"] for entry in system.ls(url.removeprefix("s3://"), detail=True) if entry["type"] == "file"]
    return {path.rpartition("/")[2]: system.cat_file(path) for path in sorted(paths)}
