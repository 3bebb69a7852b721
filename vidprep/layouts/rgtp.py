"""RGTP: its own folders for each data set, with the official label files and empty files that mark finished steps."""

import csv
import io
import json
import re
from collections.abc import Sequence

from vidprep.errors import UsageError
from vidprep.layouts.types import FFMPEG_Q2, Entry, Layout, ReadBoxes
from vidprep.splits import Split
from vidprep.types import FrameFormat

__all__ = ["LAYOUTS"]

CLIP = re.compile(r"(?P<youtube_id>.{11})_(?P<start>\d{6})_(?P<end>\d{6})")

EPIC_HEADER = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
)


def _kinetics_labels(split: Split, entries: Sequence[Entry], read_boxes: ReadBoxes | None) -> str:
    """CVDF's csv: label,youtube_id,time_start,time_end,split,is_cc; labels quoted when they hold a space."""
    lines = ["label,youtube_id,time_start,time_end,split,is_cc"]
    for entry in entries:
        clip = CLIP.fullmatch(entry.video.video_id)
        if clip is None:
            raise UsageError(
                f"{entry.video.video_id}: a clip of Kinetics is called {{youtube_id}}_{{start:06d}}_{{end:06d}}; "
                "RGTP takes its label from these times."
            )
        name = split.classes[entry.video.labels[0]]
        label = f'"{name}"' if " " in name else name
        lines.append(f"{label},{clip['youtube_id']},{int(clip['start'])},{int(clip['end'])},{split.split},0")
    return "\n".join(lines) + "\n"


def _epic_annotations(split: Split, entries: Sequence[Entry], read_boxes: ReadBoxes | None) -> str:
    """The official csv with the columns that a split keeps; the sentences that were spoken are left empty.

    Every row of the split, with frames or without: a clip is called by its row.
    """
    text = io.StringIO()
    text.write(EPIC_HEADER)
    writer = csv.writer(text, lineterminator="\n")
    for row, video in enumerate(split.videos):
        if video.start_seconds is None or video.end_seconds is None:
            raise UsageError(f"{video.video_id}: RGTP cuts clips of EPIC-KITCHENS by seconds, this row has none.")
        # The frames of the official tars: 60 per second, 50 of the extension (three-digit videos).
        rate = 50 if re.fullmatch(r"P\d+_\d{3}", video.video_id) else 60
        verb, noun = video.labels
        noun_name = split.noun_classes[noun]
        writer.writerow(
            [
                video.segment_id or f"{video.video_id}_{row}",
                video.video_id.split("_")[0],
                video.video_id,
                "",
                _timestamp(video.start_seconds),
                _timestamp(video.end_seconds),
                max(1, int(video.start_seconds * rate + 1e-6)),
                int(video.end_seconds * rate + 1e-6),
                "",
                split.classes[verb],
                verb,
                noun_name,
                noun,
                [noun_name],
                [noun],
            ]
        )
    return text.getvalue()


def _timestamp(seconds: float) -> str:
    hundredths = round(seconds * 100)
    minutes, rest = divmod(hundredths, 6000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 100:02d}.{rest % 100:02d}"


def _vid_labels(split: Split, entries: Sequence[Entry], read_boxes: ReadBoxes | None) -> str:
    """COCO's json: images and boxes (x, y, width, height) with categories from 1."""
    if read_boxes is None:
        raise UsageError("the labels of ImageNet VID are boxes; give the reader of its annotations.")
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for entry in entries:
        name = entry.video.video_id.rpartition("/")[2]
        for frame in read_boxes(entry.video):
            images.append(
                {
                    "id": len(images) + 1,
                    "file_name": f"{name}_{frame.frame_index:06d}.JPEG",
                    "height": frame.height,
                    "width": frame.width,
                }
            )
            for box in frame.boxes:
                left, top, right, bottom = box.xyxy
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": len(images),
                        "bbox": [left, top, right - left, bottom - top],
                        "area": (right - left) * (bottom - top),
                        "category_id": box.label + 1,
                        "iscrowd": 0,
                    }
                )
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(split.classes)]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories})


LAYOUTS = (
    Layout(
        code="rgtp",
        dataset="kinetics400",
        base="kinetics400/{split}/frames_224_25",
        path="{video_id}",
        frames=FrameFormat(fps=25, rate_mode="output", short_side=224, jpeg_quality=FFMPEG_Q2, template="{:03d}.jpg"),
        list_file="kinetics400/{split}/labels.csv",
        write_list=_kinetics_labels,
        markers=tuple(f"kinetics400/{{split}}/{step}" for step in ("downloaded", "unpacked", "decoded_224_25")),
        note="Archives and videos are not laid out, since the markers say that they are dealt with.",
    ),
    Layout(
        code="rgtp",
        dataset="epic_kitchens",
        splits={"train": "train", "val": "validation"},
        base="epic_kitchens/{split}/frames",
        path="{row:05d}",
        frames=FrameFormat(fps=30, jpeg_quality=FFMPEG_Q2, template="{:04d}.jpg"),
        list_file="epic_kitchens/EPIC_100_{split}.csv",
        write_list=_epic_annotations,
        markers=("epic_kitchens/{split}/decoded",),
        note="RGTP's own copies of the videos are small; from the official ones frames are 1080 pixels high. "
        "The columns narration and narration_timestamp stay empty: the official csv may take the list's place.",
    ),
    Layout(
        code="rgtp",
        dataset="imagenet_vid",
        splits={"train": "vid_train", "val": "vid_val"},
        base="vid/{split}/frames",
        path="{digits}",
        frames=FrameFormat(template="{:06d}.jpg", first_index=0),
        list_file="vid/{split}/labels.json",
        write_list=_vid_labels,
        markers=("vid/unpacked",),
    ),
)
