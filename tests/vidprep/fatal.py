"""Work that ends its own process, in a module that workers import quickly."""

import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Any

from vidprep import clips as clips_module
from vidprep import extract as extract_module
from vidprep import verify as verify_module
from vidprep.clips import ClipFacts
from vidprep.probe import VideoFacts, check
from vidprep.types import Video


def die_on_14_frames(data: bytes) -> VideoFacts:
    """As a decoder that crashes on one video."""
    facts = check(data)
    if facts.num_frames == 14:
        os.kill(os.getpid(), signal.SIGSEGV)
    return facts


def die_by_frames(data: bytes) -> VideoFacts:
    """As a decoder that hangs on a video of 13 frames, crashes on one of 14, and fills the memory with one of 15."""
    facts = check(data)
    die({13: "hang", 14: "crash", 15: "kill"}.get(facts.num_frames, ""))
    return facts


def extract_fatally(group: Any, **settings: Any) -> list[dict[str, Any]]:
    """As the extraction of frames with a decoder that does what a video's name or segment says."""
    write_frames = extract_module._write_frames

    def die_or_write(facts: Any, images: Any, path: Path, video: Video, **more: Any) -> Any:
        next(images)
        die(video.segment_id or video.video_id)
        return write_frames(facts, images, path, video, **more)

    extract_module._write_frames = die_or_write
    try:
        return extract_module._extract_group(group, **settings)
    finally:
        extract_module._write_frames = write_frames


def cut_fatally(group: Any, **settings: Any) -> list[dict[str, Any]]:
    """As the cutting of clips with a decoder that does what a segment's name says."""
    write_clip = clips_module.write_clip

    def die_or_write(*values: Any, **more: Any) -> ClipFacts:
        die(values[2].segment_id)
        return write_clip(*values, **more)

    clips_module.write_clip = die_or_write
    try:
        return clips_module._cut_group(group, **settings)
    finally:
        clips_module.write_clip = write_clip


def measure_fatally(media: Any, **settings: Any) -> tuple[int, float]:
    """As the verification of a video with a decoder that does what its name says."""
    die(media.video_id)
    return verify_module._measure(media, **settings)


def die(how: str) -> None:
    if how == "crash":
        ctypes.string_at(0)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    while how == "hang":
        ctypes.PyDLL(None).pause()  # with Python's lock held: nothing inside of the process can end it


def check_slowly(data: bytes) -> VideoFacts:
    """So that there is time to kill somebody meanwhile."""
    time.sleep(0.3)
    return check(data)
