"""Is this machine fit? What vidprep and its loaders stand on, one line each, with the command that mends it.

Every library is tried in a process of its own, by the smallest real piece of work, so that one that is broken (or
crashes, or hangs) is a line of the report like any other.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

__all__ = ["DoctorReport", "Finding", "examine"]

State = Literal["fit", "unfit", "absent"]

PROBE_SECONDS = 90.0
"""For the first import of a large library from a slow disk."""
MIN_OPEN_FILES = 4096
MIN_SHARED_MEMORY_BYTES = 1 << 30
MIN_FREE_BYTES = 10 << 30
DISK_PROBE_BYTES = 64 << 20
MIN_DISK_MB_PER_SECOND = 50.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: State
    detail: str
    """The version, what was measured, or what is wrong."""
    is_required: bool
    """Nothing works without it; the others are choices."""
    cure: str = ""
    """The command that mends it, or makes it there."""


@dataclass(frozen=True, kw_only=True)
class DoctorReport:
    """All that was looked at."""

    findings: tuple[Finding, ...]

    @property
    def is_fit(self) -> bool:
        """Whether all that is required is fit."""
        return all(finding.state == "fit" for finding in self.findings if finding.is_required)

    def to_text(self) -> str:
        """A line each: what, its state, the detail, the cure."""
        width = max(len(finding.name) for finding in self.findings)
        lines = []
        for finding in self.findings:
            word = "missing" if finding.state == "absent" and finding.is_required else finding.state
            cure = f" -> {finding.cure}" if finding.cure and finding.state != "fit" else ""
            lines.append(f"{finding.name:<{width}}  {word:<7}  {finding.detail}{cure}")
        unfit = [finding.name for finding in self.findings if finding.is_required and finding.state != "fit"]
        lines.append(f"needed and not fit: {', '.join(unfit)}" if unfit else "all that is needed is fit")
        return "\n".join(lines)

    def to_json(self) -> str:
        """The same, to be read by programs."""
        content = {"is_fit": self.is_fit, "findings": [asdict(finding) for finding in self.findings]}
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


# Libraries: (name, required, cure, program); a program prints what it found, or fails.

_PYAV = """
import av, io, numpy as np
stream = io.BytesIO()
with av.open(stream, "w", format="mp4") as out:
    video = out.add_stream("libx264" if "libx264" in av.codecs_available else "mpeg4", rate=10)
    video.width = video.height = 64
    video.pix_fmt = "yuv420p"
    for _ in range(3):
        out.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
    out.mux(video.encode(None))
stream.seek(0)
with av.open(stream) as made:
    assert sum(1 for _ in made.decode(video=0)) == 3, "three frames were encoded, other than three decode"
missing = [name for name in ("h264", "hevc", "vp9", "av1", "mpeg4") if name not in av.codecs_available]
versions = av.library_versions
print(f"{av.__version__}, libavcodec {'.'.join(map(str, versions['libavcodec']))}"
      + (f", cannot decode {', '.join(missing)}" if missing else ""))
"""
_SIMPLEJPEG = """
import numpy as np, simplejpeg
from importlib.metadata import version
image = simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8))
assert simplejpeg.decode_jpeg(image).shape == (16, 16, 3)
print(version("simplejpeg"))
"""
_TORCH = """
import torch
assert (torch.ones(2, 2) @ torch.ones(2, 2)).sum() == 8
print(f"{torch.__version__}, {torch.get_num_threads()} threads")
"""
_TORCHVISION = """
import torch, torchvision
from torchvision.transforms import v2
boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
torchvision.ops.nms(boxes, torch.ones(1), 0.5)
v2.Resize(4)(torch.zeros(3, 8, 8))
print(torchvision.__version__)
"""
_CLIP = """
import os, tempfile, av, numpy as np
folder = tempfile.TemporaryDirectory(prefix="vidprep-doctor-", ignore_cleanup_errors=True)
path = os.path.join(folder.name, "a.mp4")
with av.open(path, "w") as out:
    video = out.add_stream("libx264" if "libx264" in av.codecs_available else "mpeg4", rate=10)
    video.width = video.height = 64
    video.pix_fmt = "yuv420p"
    for _ in range(3):
        out.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
    out.mux(video.encode(None))
"""
_TORCHCODEC = (
    _CLIP
    + """
from torchcodec.decoders import VideoDecoder
from importlib.metadata import version
frames = VideoDecoder(path)
assert len(frames) == 3 and frames[2].shape == (3, 64, 64)
print(version("torchcodec"))
folder.cleanup()
"""
)
_DECORD = (
    _CLIP
    + """
import decord
frames = decord.VideoReader(path)
assert len(frames) == 3 and frames[2].shape == (64, 64, 3)
print(f"{decord.__version__} (unmaintained; the default is PyAV)")
folder.cleanup()
"""
)
_DALI = """
import nvidia.dali as dali
from nvidia.dali import fn
import numpy as np
@dali.pipeline_def(batch_size=1, num_threads=1, device_id=None)
def pipeline():
    return fn.cast(fn.external_source(lambda: [np.ones(3, np.float32)]), dtype=dali.types.UINT8)
pipe = pipeline()
pipe.build()
assert pipe.run()[0].as_array().sum() == 3
print(f"{dali.__version__} on the CPU")
"""
_CUDA = """
import torch
built = "" if torch.version.cuda else " (this torch is built without CUDA)"
assert torch.cuda.is_available(), f"torch sees no GPU{built}"
x = torch.ones(2, 2, device="cuda")
assert float((x @ x).sum()) == 8
print(f"{torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}")
"""

_LIBRARIES: tuple[tuple[str, bool, str, str], ...] = (
    ("PyAV", True, "pip install --force-reinstall av", _PYAV),
    ("simplejpeg", True, "pip install --force-reinstall simplejpeg", _SIMPLEJPEG),
    ("torch", True, "pip install --force-reinstall torch", _TORCH),
    ("torchvision", True, "pip install --force-reinstall torch torchvision", _TORCHVISION),
    ("torchcodec", False, "pip install 'vidprep[torchcodec]', and FFmpeg 4 to 8 as libraries", _TORCHCODEC),
    ("decord", False, "pip install 'vidprep[decord]'", _DECORD),
    ("DALI", False, "pip install 'vidprep[dali]'", _DALI),
)
_MODULES = {
    "PyAV": "av",
    "simplejpeg": "simplejpeg",
    "torch": "torch",
    "torchvision": "torchvision",
    "torchcodec": "torchcodec",
    "decord": "decord",
    "DALI": "nvidia.dali",
}


def examine(folder: Path | None = None) -> DoctorReport:
    """Look at everything; takes some seconds, the first imports of large libraries more.

    Args:
        folder: where data sets are to lie; its disk is measured. None: the working directory.
    """
    tasks: list[Callable[[], Finding]] = [_ffmpeg]
    for library in _LIBRARIES:
        tasks.append(lambda library=library: _library(*library))  # type: ignore[misc]
    tasks += [_gpu, _shared_memory, lambda: _disk(folder or Path.cwd()), _open_files]
    # Two at a time: each imports a library of its own.
    with ThreadPoolExecutor(2) as threads:
        return DoctorReport(findings=tuple(threads.map(lambda task: task(), tasks)))


def _library(name: str, is_required: bool, cure: str, program: str) -> Finding:
    state, detail = _try_program(program)
    if state != "fit" and f"No module named '{_MODULES[name].partition('.')[0]}" in detail:
        state, detail = "absent", "not installed"
    return Finding(name=name, state=state, detail=detail, is_required=is_required, cure=cure)


def _try_program(program: str) -> tuple[State, str]:
    """Run Python in a process of its own; what it printed, or how it failed."""
    status, output, errors = _run([sys.executable, "-c", program])
    if status == 0:
        return "fit", output.strip().splitlines()[-1] if output.strip() else ""
    lines = [line for line in errors.strip().splitlines() if line.strip()]
    # Of a long explanation the exception's own line counts, not what follows it.
    named = [line for line in lines if line.partition(":")[0].endswith(("Error", "Exception")) and line[0] != " "]
    reason = (named or lines or ["no message"])[-1].strip()[:200]
    return "unfit", f"ended by signal {-status}" if status is not None and status < 0 else reason


def _run(command: Sequence[str]) -> tuple[int | None, str, str]:
    """Exit status (negative: a signal; None: it took too long), stdout, stderr."""
    try:
        done = subprocess.run(  # noqa: S603 - programs of this file, and those that PATH names
            command, capture_output=True, text=True, errors="replace", timeout=PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return None, "", f"takes longer than {PROBE_SECONDS:g} s"
    except OSError as error:
        return 1, "", str(error.strerror or error)
    return done.returncode, done.stdout, done.stderr


def _ffmpeg() -> Finding:
    """The program: for users' own filters; PyAV brings its own libraries."""
    cure = "apt-get install ffmpeg, or conda install -c conda-forge ffmpeg"
    program = shutil.which("ffmpeg")
    if program is None:
        return Finding(name="FFmpeg", state="absent", detail="no program ffmpeg in PATH", is_required=False, cure=cure)
    status, output, errors = _run([program, "-hide_banner", "-version"])
    if status != 0 or not output:
        detail = f"{program} does not start: {(errors.strip() or 'no message').splitlines()[-1]}"
        return Finding(name="FFmpeg", state="unfit", detail=detail, is_required=False, cure=cure)
    _, encoders, _ = _run([program, "-hide_banner", "-encoders"])
    missing = [name for name in ("libx264", "libvpx-vp9", "mjpeg") if name not in encoders]
    version = " ".join(output.split()[2:3])
    lacking = f", built without {', '.join(missing)}" if missing else ""
    return Finding(
        name="FFmpeg",
        state="unfit" if missing else "fit",
        detail=f"{version}{lacking} ({program})",
        is_required=False,
        cure=cure,
    )


def _gpu() -> Finding:
    cure = "install NVIDIA's driver (apt-get install nvidia-driver-580, then restart) and torch built for CUDA"
    program = shutil.which("nvidia-smi")
    if program is None:
        detail = "no NVIDIA driver (no nvidia-smi); everything works on the CPU"
        return Finding(name="GPU", state="absent", detail=detail, is_required=False, cure=cure)
    status, output, errors = _run([program, "--query-gpu=driver_version,name", "--format=csv,noheader"])
    if status != 0 or not output.strip():
        detail = ((output + errors).strip() or "no message").splitlines()[0]
        return Finding(name="GPU", state="unfit", detail=f"nvidia-smi: {detail}", is_required=False, cure=cure)
    state, detail = _try_program(_CUDA)
    driver = output.split(",")[0].strip()
    return Finding(name="GPU", state=state, detail=f"driver {driver}: {detail}", is_required=False, cure=cure)


def _shared_memory() -> Finding:
    """Loaders with several processes hand batches over through it."""
    folder = Path("/dev/shm")  # noqa: S108 - this is the place
    cure = "start the container with --shm-size=8g (or --ipc=host), or mount -o remount,size=8g /dev/shm"
    name = "shared memory"
    if not folder.is_dir():
        return Finding(name=name, state="absent", detail="no /dev/shm", is_required=False)
    usage = shutil.disk_usage(folder)
    state: State = "fit" if usage.free >= MIN_SHARED_MEMORY_BYTES else "unfit"
    detail = f"{_gb(usage.free)} free of {_gb(usage.total)}"
    if state == "unfit":
        detail += f", loaders want {_gb(MIN_SHARED_MEMORY_BYTES)}"
    return Finding(name=name, state=state, detail=detail, is_required=False, cure=cure)


def _disk(folder: Path) -> Finding:
    """Space, and the speed at which a file gets onto the disk."""
    name = "disk"
    cure = "give another folder with --folder; see docs/cluster.md for disks and object stores"
    try:
        free = shutil.disk_usage(folder).free
        if free < 2 * DISK_PROBE_BYTES:
            detail = f"{folder}: {_gb(free)} free"
            return Finding(name=name, state="unfit", detail=detail, is_required=True, cure=cure)
        block = os.urandom(1 << 20)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".vidprep-doctor-") as stream:
            started = time.perf_counter()
            for _ in range(DISK_PROBE_BYTES // len(block)):
                stream.write(block)
            stream.flush()
            os.fsync(stream.fileno())
            speed = DISK_PROBE_BYTES / (time.perf_counter() - started) / 1e6
    except OSError as error:
        detail = f"{folder}: cannot be written ({error.strerror or error})"
        return Finding(name=name, state="unfit", detail=detail, is_required=True, cure=cure)
    state: State = "fit" if free >= MIN_FREE_BYTES and speed >= MIN_DISK_MB_PER_SECOND else "unfit"
    detail = f"{folder}: {_gb(free)} free, writes {speed:.0f} MB/s"
    if state == "unfit":
        detail += f"; data sets want {_gb(MIN_FREE_BYTES)} and {MIN_DISK_MB_PER_SECOND:.0f} MB/s"
    # A slow or a small disk is a nuisance, no reason to stop.
    return Finding(name=name, state=state, detail=detail, is_required=False, cure=cure)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    state: State = "fit" if soft == resource.RLIM_INFINITY or soft >= MIN_OPEN_FILES else "unfit"
    detail = f"limit {soft}" + ("" if state == "fit" else f", loaders of many shards want {MIN_OPEN_FILES}")
    allowed = hard == resource.RLIM_INFINITY or hard >= MIN_OPEN_FILES
    cure = f"ulimit -n {MIN_OPEN_FILES}" if allowed else f"nofile {MIN_OPEN_FILES} in /etc/security/limits.conf"
    return Finding(name="open files", state=state, detail=detail, is_required=False, cure=cure)


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
