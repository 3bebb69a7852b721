"""Video files, JPEG folders and bytes as frames with time stamps: one interface, four decoders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from vidprep.decode.types import FrameBatch, VideoReader
from vidprep.errors import UnknownName, UsageError, suggest

__all__ = ["BACKENDS", "Backend", "FrameBatch", "VideoReader", "open_video"]

Backend = Literal["pyav", "torchcodec", "decord", "jpeg"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)


def open_video(
    source: str | Path | bytes | Sequence[bytes],
    *,
    backend: Backend = "pyav",
    template: str | None = None,
    fps: float | None = None,
) -> VideoReader:
    """Open a video for reading frames by their index.

    Args:
        source: a video file or its bytes; for "jpeg" a folder of JPEG or PNG frames, or the bytes of each.
        backend: "pyav" (exact, quick on few frames, the default), "torchcodec" (exact mode), "decord" (legacy, not
            exact on every file) or "jpeg".
        template: "jpeg" only: the frames' names, such as "img_{:05d}.jpg"; None: "image_{:05d}.jpg".
        fps: "jpeg" only: frames per second; None leaves `pts_seconds` NaN.

    Raises:
        UnknownName: no such backend.
        MissingPackage: the backend's package is not installed.
        MissingVideo: no such file.
        CorruptVideo: it cannot be read as a video; the message says why.
        UsageError: arguments that do not go together.
    """
    if backend not in BACKENDS:
        raise UnknownName(f"no decoder is called {backend!r}; {suggest(backend, BACKENDS)}")
    if backend == "jpeg":
        if isinstance(source, bytes):
            raise UsageError("backend 'jpeg' reads a folder or a list of JPEG bytes, got the bytes of one file.")
        from vidprep.decode.jpeg import JpegReader

        return JpegReader(source, template=template or "image_{:05d}.jpg", fps=fps)
    if template is not None or fps is not None:
        raise UsageError(f"template and fps belong to backend 'jpeg', got backend {backend!r}.")
    if not isinstance(source, str | Path | bytes):
        raise UsageError(f"backend {backend!r} reads a file or its bytes, got a {type(source).__name__}.")
    if backend == "torchcodec":
        from vidprep.decode.torchcodec import TorchcodecReader

        return TorchcodecReader(source)
    if backend == "decord":
        from vidprep.decode.decord import DecordReader

        return DecordReader(source)
    from vidprep.decode.pyav import PyavReader

    return PyavReader(source)
