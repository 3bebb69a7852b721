"""Batches from DALI: the frames, crops and labels of the other backend, and a sentence where it cannot give them."""

import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any, Literal

import av
import pytest
import torch
from av.stream import Disposition

from tests.videos import SecondStream, read_number, write_numbered_video
from tests.vidprep import test_decode_equality
from tests.vidprep.load import test_targets
from tests.vidprep.load.folders import Source, write_shard_folder
from vidprep.decode.pyav import PyavReader
from vidprep.errors import CorruptVideo, MissingPackage, UsageError
from vidprep.load import Batch, ClipDataset, Loader, ShardDataset, dali, make_loader
from vidprep.types import Video

pytest.importorskip("nvidia.dali")
pytestmark = pytest.mark.dali

NUM_FRAMES = 30
CLIPS: Any = {"num_frames": 6, "resize": 80, "crop": 64, "seed": 3}
WHOLE: Any = {"num_frames": 15, "resize": 96, "crop": 96, "mean": (0, 0, 0), "std": (1, 1, 1)}
VP9: dict[str, Any] = {"codec": "libvpx-vp9"}
MJPEG: dict[str, Any] = {"codec": "mjpeg", "pixel_format": "yuvj420p"}

# name -> (file, arguments of write_numbered_video)
ON_THE_CPU: dict[str, tuple[str, dict[str, Any]]] = {
    "vp8": ("a.webm", {"codec": "libvpx"}),
    "vp8 with hidden frames": (
        "a.webm",
        {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "good"}},
    ),
    "vp9": ("a.webm", VP9),
    "vp9 in MP4": ("a.mp4", VP9),
    "vp9 with sound": ("a.mp4", {**VP9, "has_audio": True}),
    "vp9 of one GOP": ("a.mkv", {**VP9, "gop": 250}),
    "vp9 4:4:4": ("a.webm", {**VP9, "pixel_format": "yuv444p"}),
    "vp9 of odd size": ("a.webm", {**VP9, "width": 131, "height": 97}),
    "vp9 variable rate": ("a.webm", {**VP9, "pts": [i * i for i in range(NUM_FRAMES)]}),
    "vp9 late and large times": ("a.mkv", {**VP9, "pts": [2**33 + 40 * i for i in range(NUM_FRAMES)]}),
    "vp9 before another stream": (
        "a.mkv",
        {**VP9, "second_stream": SecondStream(num_frames=NUM_FRAMES, width=64, height=48, start=1000)},
    ),
    "mjpeg in AVI": ("a.avi", MJPEG),
    "mjpeg in MOV": ("a.mov", MJPEG),
    "mjpeg in Matroska": ("a.mkv", {**MJPEG, "pts": [i * i + 3 for i in range(NUM_FRAMES)]}),
}
needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ON_A_GPU: dict[str, tuple[str, dict[str, Any]]] = {
    "h264": ("a.mp4", {}),
    "h264 without B-frames": ("a.mp4", {"bframes": 0}),
    "h264 open GOP": ("a.mp4", {"open_gop": True}),
    "h264 variable rate": ("a.mp4", {"pts": [i * i for i in range(NUM_FRAMES)]}),
    "h264 of one GOP": ("a.mkv", {"gop": 250}),
    "hevc": ("a.mp4", {"codec": "libx265"}),
    "hevc open GOP": ("a.mkv", {"codec": "libx265", "open_gop": True}),
    "av1": ("a.mp4", {"codec": "libsvtav1"}),
    "vp9": ("a.webm", VP9),
    "mjpeg": ("a.avi", MJPEG),
}


BACKENDS: tuple[Literal["threads", "dali"], ...] = ("threads", "dali")


def write_shards(folder: Path, file: str, *, num_videos: int = 1, content: Any = "video", **arguments: Any) -> Path:
    """Shards of numbered videos; frame i of the k-th shows 100 k + i."""
    sources = []
    for k in range(num_videos):
        path = folder / f"{k}{file}"
        size = {"width": 128, "height": 96, "fps": 10, "num_frames": NUM_FRAMES}
        write_numbered_video(path, start=100 * k, **{**size, **arguments})
        sources.append(Source(video=Video(video_id=f"v{k}", labels=(k,)), path=path))
    return write_shard_folder(folder / "shards", sources, content=content)


def numbers(batch: Batch) -> list[list[int]]:
    """[b][v * t]: what the frames show."""
    return [
        [read_number((frame.float() * 255).round().numpy()) for frame in clips.flatten(0, 1).cpu()]
        for clips in batch.frames
    ]


def assert_equal_but_for_interpolation(ours: Loader, theirs: Loader, *, mean_of_255: float, most_of_255: float) -> None:
    """The same batches; their pixels apart by at most so many grey levels."""
    pairs = list(zip(ours, theirs, strict=True))
    assert pairs
    scale = 1.0 if pairs[0][0].frames.dtype == torch.uint8 else 255 * 0.2290
    for expected, given in pairs:
        assert given.video_id == expected.video_id
        assert torch.equal(given.labels, expected.labels)
        assert torch.equal(given.pts_seconds, expected.pts_seconds)
        assert (given.frames.shape, given.frames.dtype) == (expected.frames.shape, expected.frames.dtype)
        apart = (given.frames.float() - expected.frames.float()).abs() * scale
        assert apart.mean() <= mean_of_255
        assert apart.max() <= most_of_255


@pytest.mark.parametrize("video", ON_THE_CPU)
def test_dali_shows_the_frames_that_the_sampler_chose(tmp_path: Path, video: str) -> None:
    file, arguments = ON_THE_CPU[video]
    folder = write_shards(tmp_path, file, **arguments)
    for options in (WHOLE, {**WHOLE, "num_clips": 2}):
        dataset = ShardDataset(folder, **options)
        (batch,) = make_loader(dataset, batch_size=1, workers=1, backend="dali")
        assert numbers(batch) == [dataset.make.settings.indices(NUM_FRAMES, None).reshape(-1).tolist()]


@pytest.mark.parametrize("video", test_decode_equality.VIDEOS)
def test_dali_shows_the_frames_of_every_kind_of_video_from_its_jpeg_shards(tmp_path: Path, video: str) -> None:
    file, arguments = test_decode_equality.VIDEOS[video]
    num_frames = test_decode_equality.NUM_FRAMES
    folder = write_shards(tmp_path, file, content="frames", num_frames=num_frames, **arguments)
    dataset = ShardDataset(folder, **{**WHOLE, "num_clips": 2})
    loaders = [make_loader(dataset, batch_size=1, workers=1, backend=backend) for backend in BACKENDS]
    (expected,), (batch,) = loaders
    assert numbers(batch) == [dataset.make.settings.indices(num_frames, None).reshape(-1).tolist()]
    assert numbers(expected) == numbers(batch)


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("video", ON_A_GPU)
def test_dali_shows_the_frames_that_the_sampler_chose_on_a_gpu(tmp_path: Path, video: str) -> None:
    file, arguments = ON_A_GPU[video]
    folder = write_shards(tmp_path, file, **{"width": 256, "height": 192, **arguments})
    dataset = ShardDataset(folder, **{**WHOLE, "num_clips": 2, "resize": 192, "crop": 192})
    (batch,) = make_loader(dataset, batch_size=1, workers=1, backend="dali", device="gpu")
    assert batch.frames.is_cuda
    assert batch.labels.is_cuda
    assert numbers(batch) == [dataset.make.settings.indices(NUM_FRAMES, None).reshape(-1).tolist()]


@pytest.mark.gpu
@needs_a_gpu
def test_a_gpu_gives_the_jpeg_frames_of_the_cpu(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, "a.mp4", num_videos=4, content="frames")
    dataset = ShardDataset(folder, train=True, **CLIPS)
    ours = list(make_loader(dataset, batch_size=2, workers=1))
    theirs = list(make_loader(dataset, batch_size=2, workers=1, backend="dali", device="gpu"))
    for expected, given in zip(ours, theirs, strict=True):
        assert given.frames.is_cuda
        apart = (given.frames.cpu() - expected.frames).abs() * 255 * 0.229
        assert apart.mean() <= 1  # nvJPEG rounds in its own way


def test_frames_hidden_by_an_edit_list_are_not_shown(tmp_path: Path) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs the ffmpeg command")
    whole, cut = write_numbered_video(tmp_path / "a.mp4", num_frames=40, **VP9), tmp_path / "cut.mp4"
    subprocess.run(["ffmpeg", "-v", "error", "-ss", "0.5", "-i", str(whole), "-c", "copy", str(cut)], check=True)
    folder = write_shard_folder(tmp_path / "shards", [Source(video=Video(video_id="v", labels=(0,)), path=cut)])
    dataset = ShardDataset(folder, **WHOLE)
    (ours,) = make_loader(dataset, batch_size=1, workers=0)
    (theirs,) = make_loader(dataset, batch_size=1, workers=1, backend="dali")
    assert numbers(theirs) == numbers(ours)
    assert min(numbers(theirs)[0]) >= 15


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"train": True},
        {"train": True, "dtype": "uint8"},
        {"dtype": "uint8"},
        {"num_clips": 2, "num_crops": 3},
        {"train": True, "sampler": "dense", "dense_window": 24},
        {"num_frames": 40},  # more than there are: the last one again and again
    ],
    ids=str,
)
@pytest.mark.parametrize("content", ["video", "frames"])
def test_batches_are_those_of_the_threads(tmp_path: Path, content: Any, options: dict[str, Any]) -> None:
    folder = write_shards(tmp_path, "a.webm", num_videos=5, content=content, num_frames=16, **VP9)
    dataset = ShardDataset(folder, **{**CLIPS, **options})
    # Frames differ by rounding after the resize; DALI's conversion of grey videos to RGB by one more level.
    mean, most = (0.01, 1.1) if content == "frames" else (0.6, 2.1)
    assert_equal_but_for_interpolation(
        make_loader(dataset, batch_size=2, shuffle=True, workers=1),
        make_loader(dataset, batch_size=2, shuffle=True, workers=1, backend="dali"),
        mean_of_255=mean,
        most_of_255=most,
    )


def test_a_training_crop_over_the_edge_is_black_there(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, "a.mp4", content="frames", width=94, height=94)
    dataset = ShardDataset(folder, num_frames=2, resize=96, crop=96, train=True, scales=(1.0,), dtype="uint8")
    assert_equal_but_for_interpolation(
        make_loader(dataset, batch_size=1, workers=0),
        make_loader(dataset, batch_size=1, workers=0, backend="dali"),
        mean_of_255=0,
        most_of_255=0,
    )


def test_only_frames_of_the_annotated_segment_are_shown(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.webm", num_frames=NUM_FRAMES, fps=10, width=96, height=96, **VP9)
    video = Video(video_id="v", labels=(1, 4), start_seconds=1.0, end_seconds=2.0)
    folder = write_shard_folder(tmp_path / "shards", [Source(video=video, path=path)], task="multi_label")
    dataset = ShardDataset(folder, **{**WHOLE, "num_frames": 10})
    (batch,) = make_loader(dataset, batch_size=1, workers=1, backend="dali")
    assert numbers(batch) == [list(range(10, 20))]
    assert torch.nonzero(batch.labels[0]).flatten().tolist() == [1, 4]


def test_boxes_and_verbs_come_through_dali(tmp_path: Path) -> None:
    boxes = ShardDataset(test_targets.write_shards(tmp_path / "vid"), train=True, **CLIPS)
    ours = list(make_loader(boxes, batch_size=2, workers=1))
    theirs = list(make_loader(boxes, batch_size=2, workers=1, backend="dali"))
    for expected, given in zip(ours, theirs, strict=True):
        assert expected.targets is not None
        assert given.targets is not None
        assert torch.equal(given.labels, expected.labels)
        for mine, its in zip(_flat(expected.targets), _flat(given.targets), strict=True):
            assert torch.equal(its.boxes, mine.boxes)
            assert torch.equal(its.track_ids, mine.track_ids)
    actions = test_targets.actions(tmp_path)
    (batch,) = make_loader(actions, batch_size=3, workers=1, backend="dali")
    assert batch.labels.tolist() == [[1, 1], [0, 2], [1, 0]]


def test_an_epoch_goes_on_where_the_other_backend_stopped(tmp_path: Path) -> None:
    dataset = ShardDataset(write_shards(tmp_path, "a.mp4", num_videos=6, content="frames"), **CLIPS)
    first = make_loader(dataset, batch_size=2, shuffle=True, workers=1, backend="dali")
    begun = iter(first)
    seen = [*next(begun).video_id]
    second = make_loader(dataset, batch_size=1, shuffle=True, workers=1)
    second.load_state_dict(first.state_dict())
    seen += [video_id for batch in second for video_id in batch.video_id]
    assert seen == [
        video_id for batch in make_loader(dataset, batch_size=6, shuffle=True) for video_id in batch.video_id
    ]


def test_a_batch_that_is_kept_is_not_overwritten(tmp_path: Path) -> None:
    dataset = ShardDataset(write_shards(tmp_path, "a.mp4", num_videos=6, content="frames"), **WHOLE)
    batches = list(make_loader(dataset, batch_size=1, workers=2, backend="dali"))
    assert [numbers(batch)[0][0] // 100 for batch in batches] == list(range(6))


def test_breaking_off_stops_the_threads(tmp_path: Path) -> None:
    dataset = ShardDataset(write_shards(tmp_path, "a.mp4", num_videos=6, content="frames"), **CLIPS)
    for _ in make_loader(dataset, batch_size=1, workers=2, backend="dali"):
        break
    assert [thread for thread in threading.enumerate() if thread.name.startswith("vidprep-dali")] == []


def damage_member(folder: Path, key: int) -> None:
    """Zero the end of a sample's video, or of each of its frames, inside of its shard."""
    dataset = ShardDataset(folder, **CLIPS)
    offsets, sizes = dataset._media[key]
    path = folder / dataset.rows[key].shard
    data = bytearray(path.read_bytes())
    for offset, size in zip(offsets, sizes, strict=True):
        begin, end = int(offset + size * 4 // 5), int(offset + size)
        data[begin:end] = bytes(end - begin)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("frames", r"sample 00000001 of .*train-000000.tar gives no clip: DALI says: .*decode"),
        ("video", r"sample 00000001 of .*train-000000.tar gives no clip: "),
    ],
)
def test_a_sample_that_does_not_decode_is_named_or_counted(tmp_path: Path, content: Any, sentence: str) -> None:
    folder = write_shards(tmp_path, "a.mp4", num_videos=4, content=content, **VP9)
    damage_member(folder, 1)
    dataset = ShardDataset(folder, **CLIPS)
    with pytest.raises(CorruptVideo, match=sentence):
        list(make_loader(dataset, batch_size=3, workers=1, backend="dali"))
    loader = make_loader(dataset, batch_size=3, workers=1, backend="dali", on_error="count")
    assert [batch.video_id for batch in loader] == [["v0", "v2"], ["v3"]]
    assert [fault.index for fault in loader.faults] == [1]
    assert "sample 00000001" in loader.faults[0].reason


def test_a_video_whose_size_changes_is_refused(tmp_path: Path) -> None:
    """DALI takes the first frame's size for all and would show a corner of the others, or what lay in its memory."""
    parts = [
        write_numbered_video(tmp_path / f"{k}.webm", num_frames=12, width=width, height=height, start=12 * k, **VP9)
        for k, (width, height) in enumerate([(128, 96), (64, 48)])
    ]
    path = tmp_path / "both.webm"
    with av.open(str(path), "w") as target:
        copy: Any = None
        for number, part in enumerate(parts):
            with av.open(str(part)) as source:
                copy = copy or target.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.dts is None:
                        continue
                    packet.pts, packet.dts = (packet.pts or 0) + number * 2000, packet.dts + number * 2000
                    packet.stream = copy
                    target.mux(packet)
    folder = write_shard_folder(tmp_path / "shards", [Source(video=Video(video_id="v", labels=(0,)), path=path)])
    with pytest.raises(CorruptVideo, match=r"a frame is 64 x 48 pixels, the index says 128 x 96; re-encode the video"):
        list(make_loader(ShardDataset(folder, **CLIPS), batch_size=1, workers=1, backend="dali"))


@pytest.mark.parametrize(
    ("file", "arguments", "sentence"),
    [
        ("a.mp4", {}, r"DALI decodes h264 on a GPU only; choose device='gpu', or backend='threads', which decodes"),
        ("a.mp4", {"codec": "libx265"}, r"DALI decodes hevc on a GPU only"),
        ("a.mp4", {"codec": "libsvtav1"}, r"DALI decodes av1 on a GPU only"),
        ("a.mp4", {"codec": "mpeg4"}, r"DALI does not decode mpeg4; choose backend='threads'"),
        ("a.mp4", {**VP9, "rotation": 90}, r"stored turned or mirrored \(rotation 90\), which DALI does not undo"),
        ("a.mp4", {**VP9, "mirrored": True}, r"stored turned or mirrored"),
    ],
)
def test_videos_that_dali_would_show_wrongly_are_refused(
    tmp_path: Path, file: str, arguments: dict[str, Any], sentence: str
) -> None:
    dataset = ShardDataset(write_shards(tmp_path, file, **arguments), **CLIPS)
    with pytest.raises(UsageError, match=sentence):
        make_loader(dataset, batch_size=1, backend="dali")


def test_dali_shows_the_best_of_several_streams(tmp_path: Path) -> None:
    second = SecondStream(num_frames=NUM_FRAMES, width=64, height=48, start=1000, comes_first=True)
    both = write_numbered_video(tmp_path / "both.mkv", num_frames=NUM_FRAMES, second_stream=second, **VP9)
    path = tmp_path / "default.mkv"
    with av.open(str(both)) as source, av.open(str(path), "w") as target:
        copies = [target.add_stream_from_template(stream) for stream in source.streams.video]
        copies[0].disposition, copies[1].disposition = Disposition.hearing_impaired, Disposition.default
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = copies[packet.stream_index]
                target.mux(packet)
    with PyavReader(path) as reader:
        assert reader.stream.index == 1
    folder = write_shard_folder(tmp_path / "shards", [Source(video=Video(video_id="v", labels=(0,)), path=path)])
    (batch,) = make_loader(ShardDataset(folder, **WHOLE), batch_size=1, workers=1, backend="dali")
    assert numbers(batch) == [list(range(1, NUM_FRAMES, 2))]


def test_what_dali_cannot_do_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_shards(tmp_path, "a.mp4", content="frames")
    dataset = ShardDataset(folder, **CLIPS)

    def refuse(sentence: str, dataset: Any = dataset, error: type[UsageError] = UsageError, **arguments: Any) -> None:
        with pytest.raises(error, match=sentence):
            make_loader(dataset, batch_size=1, **{"backend": "dali", **arguments})

    videos = ClipDataset(dataset.videos, [tmp_path / "0a.mp4"], task="single_label", num_classes=8, **CLIPS)
    refuse(r"reads shards \(ShardDataset\), got a ClipDataset; write shards with `vidprep shard`", dataset=videos)
    refuse("leave dct_scaling off", dataset=ShardDataset(folder, dct_scaling=True, **CLIPS))
    refuse("does not do resize_floats", dataset=ShardDataset(folder, resize_floats=True, **CLIPS))
    whole = ShardDataset(folder, num_frames=4, resize=96, crop=96, whole_frames=True)
    refuse("leave whole_frames off, or choose backend='threads'", dataset=whole)
    refuse("backend is 'threads' or 'dali', device 'cpu' or 'gpu'; got 'DALI' and 'cpu'", backend="DALI")
    refuse("'threads' works on the CPU; for device 'gpu' choose backend='dali'", backend="threads", device="gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refuse("device 'gpu' needs a CUDA device that PyTorch can use", device="gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    refuse("leave it off with device='gpu'", device="gpu", pin_memory=True)
    monkeypatch.setattr(dali, "find_spec", _missing)
    refuse(r"needs NVIDIA DALI: pip install 'vidprep\[dali\]', or choose backend='threads'", error=MissingPackage)


def _missing(name: str) -> None:
    raise ModuleNotFoundError(name)


def _flat(targets: Any) -> list[Any]:
    return [frame for sample in targets for view in sample for frame in view]
