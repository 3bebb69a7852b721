"""What a trained model sees in videos that are in no data set: the likeliest classes of each file."""

import glob
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vidmodels.data import clips_of_file
from vidmodels.evaluate import choose_device, mean_probabilities
from vidmodels.methods import METHODS
from vidmodels.runs import Run, class_names, load_model
from vidmodels.types import Recipe
from vidprep.datasets.files import is_video_name
from vidprep.errors import CorruptVideo, UsageError

__all__ = ["Classifier", "Prediction", "find_videos", "predict"]

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

    @property
    def short_line(self) -> str:
        """For a terminal where predictions follow each other: the name, then the classes beside each other."""
        classes = zip(self.classes, self.probabilities, strict=True)
        return f"{self.video:>8}  " + "  ".join(f"{name} {100 * value:.1f} %" for name, value in classes)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), ensure_ascii=False)


def find_videos(paths: Sequence[Path]) -> list[Path]:
    """Files as they are given, and of folders and patterns ("clips/*.mp4") the videos, sorted.

    Of folders the videos at any depth; `**` in a pattern stands for any depth, too. A file given twice comes twice.

    Raises:
        UsageError: nothing there, or a folder or pattern without a video.
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
        elif glob.has_magic(str(path)):
            fitting = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207 - of a whole path
            videos = [file for file in fitting if file.is_file() and is_video_name(file.name)]
            if not videos:
                raise UsageError(f"{path}: no video fits this pattern.")
            found += videos
        else:
            raise UsageError(f"{path}: no such file or folder; give videos, or folders of them.")
    return found


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A model that says what is in clips, with the names of its classes."""

    model: nn.Module
    """`forward(frames (n, t, c, h, w)) -> Output`, in evaluation mode, on `device`."""
    recipe: Recipe
    classes: tuple[str, ...]
    device: torch.device

    @staticmethod
    def load(run: Run, *, device: torch.device) -> "Classifier":
        """The form of a run's model that skips.

        Raises:
            UsageError: the classes are not known, or it is a detector.
            CheckpointError: weights that do not fit.
        """
        if run.recipe.data.fit == "pad":
            raise UsageError(f"{run.weights}: a detector finds boxes, not classes of a video; use `vidmodels detect`.")
        classes = _classes(run)
        model = load_model(run, num_classes=len(classes), device=device)
        return Classifier(
            model=METHODS[run.recipe.method].make_dynamic(model).eval(),
            recipe=run.recipe,
            classes=classes,
            device=device,
        )

    @torch.no_grad()
    def predict(self, clips: Tensor, *, name: str, top: int = 5) -> Prediction:
        """The likeliest classes of one video.

        Args:
            clips: (v, t, c, h, w), normalised; their answers are averaged as the recipe's evaluation does.
            name: of the video.
            top: how many classes.
        """
        how = self.recipe.eval
        parts = torch.split(clips, how.clips_per_call)
        logits = torch.cat([self.model(part.to(self.device)).logits.double().cpu() for part in parts])
        scores = mean_probabilities(logits[None], how.average)[0]
        order = scores.argsort(descending=True, stable=True)[:top]
        return Prediction(
            video=name,
            classes=tuple(self.classes[index] for index in order.tolist()),
            probabilities=tuple(scores[order].tolist()),
        )

    def predict_file(self, video: Path, *, top: int = 5) -> Prediction:
        """The likeliest classes of a file by all clips and crops of the recipe's evaluation; or its fault."""
        try:
            clips = clips_of_file(self.recipe, video)
        except CorruptVideo as error:
            return Prediction(video=str(video), fault=str(error).removeprefix(f"{video}: "))
        return self.predict(clips, name=str(video), top=top)


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
        UsageError: the classes are not known, or it is a detector.
        CheckpointError: weights that do not fit.
    """
    classifier = Classifier.load(run, device=choose_device(device))
    for video in videos:
        yield classifier.predict_file(video, top=top)


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
