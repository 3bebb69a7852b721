from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from tests.vidprep.load.folders import numbered_sources, write_shard_folder
from vidprep.errors import CorruptVideo, UsageError
from vidprep.load import ClipDataset, ClipOnDemand, ClipsOnDemand, ShardDataset, iterate_on_demand
from vidprep.types import Video

OPTIONS: dict[str, Any] = {"num_frames": 10, "resize": 64, "crop": 48, "sampler": "jittered", "leading_frames": 4}
"""4 frames of the whole video, and then 6 others, sampled on their own."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("on_demand")
    videos = [
        Video(video_id="whole", labels=(3,)),
        Video(video_id="part", labels=(1,), start_seconds=1.0, end_seconds=3.0),
        Video(video_id="last", labels=(0,)),
    ]
    sources = numbered_sources(folder, videos, num_frames=40)
    for content in ("video", "frames"):
        write_shard_folder(folder / content, sources, content=content)
    return folder


@pytest.mark.parametrize("content", ["video", "frames"])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_frames_on_demand_are_those_of_the_loader(
    folder: Path, content: str, dtype: Literal["float32", "uint8"]
) -> None:
    dataset = ShardDataset(folder / content, "train", dtype=dtype, **OPTIONS)
    for index in range(3):
        clip, sample = ClipOnDemand(dataset, index), dataset[index]
        for places in ([0, 1, 2, 3], [9, 5, 5], list(range(10))):
            assert torch.equal(clip.frames(places), sample.frames[0][places])
        assert (clip.video_id, int(clip.labels)) == (sample.video_id, int(sample.labels))
        clip.close()


def test_files_give_frames_on_demand(folder: Path) -> None:
    dataset = ClipDataset(
        [Video(video_id="whole", labels=(3,))], [folder / "whole.mp4"], task="single_label", num_classes=8, **OPTIONS
    )
    assert torch.equal(ClipOnDemand(dataset, 0).frames(range(10)), dataset[0].frames[0])


def test_a_frame_is_decoded_once_and_only_when_it_is_asked_for(folder: Path) -> None:
    clip = ClipOnDemand(ShardDataset(folder / "frames", "train", **OPTIONS), 0)
    assert clip.num_decoded == 0
    clip.frames([0, 1])
    clip.frames([1, 0])
    assert clip.num_decoded == 2
    clip.frames(range(10))
    assert clip.num_decoded == clip.num_distinct
    assert clip.num_distinct <= 10


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hand_out_what_is_asked_for(folder: Path, workers: int) -> None:
    dataset = ShardDataset(folder / "video", "train", **OPTIONS)
    seen: list[str] = []
    for batch in iterate_on_demand(dataset, batch_size=2, first=range(4), workers=workers):
        n = batch.shape[0]
        assert batch.shape == (n, 10, 3, 48, 48)
        rows = torch.arange(n)
        taken = batch.take(rows, torch.arange(4).expand(n, 4))
        assert batch.num_decoded == 4 * n
        later = batch.take(rows[-1:], torch.tensor([[9]]))
        assert batch.num_decoded == 4 * n + 1 < batch.num_distinct
        assert batch.seconds_waited > 0
        for row in range(n):
            whole = dataset[len(seen)].frames[0]
            assert torch.equal(taken[row], whole[:4])
            seen.append(batch.video_id[row])
        assert torch.equal(later[0, 0], whole[9])
        assert batch.labels.tolist() == [[3, 1], [0]][len(seen) > 2]
    assert seen == [dataset[index].video_id for index in range(3)]


class Recording(ShardDataset):
    """Notes which videos were opened and closed."""

    def open_reader(self, index: int) -> Any:
        reader, times = super().open_reader(index)
        close = reader.close
        events.append(("open", index))

        def noted() -> None:
            events.append(("close", index))
            close()

        reader.close = noted  # type: ignore[method-assign]
        return reader, times


events: list[tuple[str, int]] = []


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_left_in_the_middle_close_all_that_was_opened(folder: Path, workers: int) -> None:
    events.clear()
    dataset = Recording(folder / "video", "train", **OPTIONS)
    batches = iterate_on_demand(dataset, batch_size=1, first=[0], workers=workers)
    assert next(batches).clips[0].num_decoded == 1
    batches.close()  # type: ignore[attr-defined]  # a generator
    opened, closed = ([index for what, index in events if what == kind] for kind in ("open", "close"))
    assert 0 in opened
    assert sorted(opened) == sorted(closed)


@pytest.mark.parametrize(
    "options", [{"train": True}, {"num_crops": 3}, {"sampler": "segments", "leading_frames": 0, "num_clips": 2}]
)
def test_other_clips_than_one_of_evaluation_are_refused(folder: Path, options: dict[str, Any]) -> None:
    dataset = ShardDataset(folder / "video", "train", **{**OPTIONS, **options})
    with pytest.raises(UsageError, match="for one clip and one crop of a video in evaluation"):
        ClipOnDemand(dataset, 0)


def test_sizes_of_batches_are_checked(folder: Path) -> None:
    dataset = ShardDataset(folder / "video", "train", **OPTIONS)
    with pytest.raises(UsageError, match="batch_size >= 1 and workers >= 0, got 0 and 1"):
        next(iterate_on_demand(dataset, batch_size=0, first=[0], workers=1))


def test_a_fault_names_its_video(folder: Path, tmp_path: Path) -> None:
    data = (folder / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    dataset = ClipDataset(
        [Video(video_id="cut", labels=(3,))], [tmp_path / "cut.mp4"], task="single_label", num_classes=8, **OPTIONS
    )
    with pytest.raises(CorruptVideo, match=r"^cut gives no clip: "):
        ClipsOnDemand(dataset, [0], first=[0])
