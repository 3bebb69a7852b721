"""What a trained model sees in videos that are in no data set: the likeliest classes of each file."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from vidmodels.data import clips_of_file
from vidmodels.evaluate import choose_device, mean_probabilities
from vidmodels.methods import METHODS
from vidmodels.runs import Run, class_names, load_model
from vidprep.datasets.files import is_video_name
from vidprep.errors import CorruptVideo, UsageError

__all__ = ["Prediction", "find_videos", "predict"]

BAR_WIDTH = 24
"""Characters of a probability of 1."""
EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The likeliest classes of a video, or why it has none."""

    video: str
    classes: tuple[str, ...] = ()
    """The likeliest first; of equal ones the lower number."""
    probabilities: tuple[float, ...] = ()
    fault: str = ""
    """Why the file gave no clip; "" where it did."""

    @property
    def lines(self) -> list[str]:
        """For a terminal: the file, then a bar for each class."""
        if self.fault:
            return [f"{self.video}: {self.fault}"]
        width = max(len(name) for name in self.classes)
        return [
            self.video,
            *(
                f"  {name:<{width}}  {100 * value:5.1f} %  {_bar(value)}"
                for name, value in zip(self.classes, self.probabilities, strict=True)
            ),
        ]

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), ensure_ascii=False)


def find_videos(paths: Sequence[Path]) -> list[Path]:
    """Files as they are given, and of folders the videos at any depth, sorted; a file given twice comes twice.

    Raises:
        UsageError: nothing there, or a folder without a video.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and is_video_name(file.name))
            if not inside:
                raise UsageError(f"{path}: no video in this folder; give files, or a folder that holds some.")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UsageError(f"{path}: no such file or folder; give videos, or folders of them.")
    return found


def predict(run: Run, videos: Sequence[Path], *, top: int = 5, device: str | None = None) -> Iterator[Prediction]:
    """The likeliest classes of each file, as the recipe's evaluation scores a video: all its clips and crops.

    Args:
        run: weights with their recipe.
        videos: files.
        top: classes of each video.
        device: None takes a GPU where there is one.

    Yields:
        One for each file, in order; a file that does not decode gives one with its fault.

    Raises:
        UsageError: the classes are not known.
        CheckpointError: weights that do not fit.
    """
    recipe, chosen = run.recipe, choose_device(device)
    classes = _classes(run)
    model = METHODS[recipe.method].make_dynamic(load_model(run, num_classes=len(classes), device=chosen)).eval()
    for video in videos:
        try:
            clips = clips_of_file(recipe, video)
        except CorruptVideo as error:
            yield Prediction(video=str(video), fault=str(error).removeprefix(f"{video}: "))
            continue
        with torch.no_grad():
            parts = torch.split(clips, recipe.eval.clips_per_call)
            logits = torch.cat([model(part.to(chosen)).logits.double().cpu() for part in parts])
        scores = mean_probabilities(logits[None], recipe.eval.average)[0]
        order = scores.argsort(descending=True, stable=True)[:top]
        yield Prediction(
            video=str(video),
            classes=tuple(classes[index] for index in order.tolist()),
            probabilities=tuple(scores[order].tolist()),
        )


def _classes(run: Run) -> tuple[str, ...]:
    names = class_names(run)
    if names is None:
        raise UsageError(
            f"{run.weights}: does not say what its classes are called, and data set {run.recipe.data.dataset} is not "
            "one of vidprep's; give weights that `vidmodels train` wrote."
        )
    return names


def _bar(value: float) -> str:
    whole, rest = divmod(round(8 * BAR_WIDTH * value), 8)
    return "█" * whole + EIGHTHS[rest].strip()
