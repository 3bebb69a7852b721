"""Every decoder gives the frames that were asked for, of every kind of video: each frame shows its own number."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

from tests.videos import SecondStream, read_number, write_numbered_video
from vidprep.decode import FrameBatch, open_video

NUM_FRAMES = 36
INDICES = [0, 35, 7, 7, 13, 25, 12, 11, 1]

# name -> (file, arguments of write_numbered_video)
VIDEOS: dict[str, tuple[str, dict[str, Any]]] = {
    "h264": ("a.mp4", {"bframes": 0}),
    "h264 with B-frames": ("a.mp4", {"bframes": 3}),
    "h264 open GOP": ("a.mp4", {"open_gop": True}),
    "h264 variable rate": ("a.mp4", {"pts": [i * i for i in range(NUM_FRAMES)]}),
    "h264 rotated 90": ("a.mp4", {"rotation": 90}),
    "h264 rotated 180": ("a.mp4", {"rotation": 180}),
    "h264 with two streams": ("a.mp4", {"second_stream": SecondStream(num_frames=9, width=64, height=48, start=500)}),
    "hevc": ("a.mp4", {"codec": "libx265"}),
    "vp9": ("a.webm", {"codec": "libvpx-vp9"}),
    "av1": ("a.mkv", {"codec": "libsvtav1"}),
}
DECODERS = ("pyav", "torchcodec", "jpeg")
"""Further ones are added here and in `decode`."""


@pytest.fixture(scope="module", params=VIDEOS, ids=lambda name: name.replace(" ", "-"))
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file, arguments = VIDEOS[request.param]
    path = tmp_path_factory.mktemp("videos") / file
    return write_numbered_video(path, num_frames=NUM_FRAMES, **arguments)


def decode(path: Path, decoder: str, indices: Sequence[int]) -> FrameBatch:
    """The frames of a video by one decoder; "jpeg" decodes those that a shard of frames would hold."""
    if decoder == "jpeg":
        with open_video(path) as reader:
            frames = reader.get_frames_at(range(reader.num_frames)).data.transpose(0, 2, 3, 1)
        encoded = [bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality=95)) for frame in frames]
        with open_video(encoded, backend="jpeg") as reader:
            return reader.get_frames_at(indices)
    pytest.importorskip("av" if decoder == "pyav" else decoder)
    with open_video(path, backend=decoder) as reader:  # type: ignore[arg-type]
        assert reader.num_frames == NUM_FRAMES
        return reader.get_frames_at(indices)


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_index_is_right(video: Path, decoder: str) -> None:
    batch = decode(video, decoder, INDICES)
    assert [read_number(picture) for picture in batch.data] == INDICES


def test_two_exact_decoders_give_equal_bytes(video: Path) -> None:
    assert np.array_equal(decode(video, "pyav", INDICES).data, decode(video, "torchcodec", INDICES).data)
