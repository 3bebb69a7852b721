"""The central values of vidmodels: what a method is, what it gives, what it costs, and a recipe that sets it up."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from PIL.Image import Image
from torch import Tensor, nn

from vidprep.load.transforms import CropPlacement, Fit, TrainCrop
from vidprep.load.types import Batch
from vidprep.sampling import ClipPlacement, Sampler, Short

__all__ = ["Batch", "Cost", "Data", "Detections", "EarlyExit", "Eval", "Features", "Method", "Output", "Published"]
__all__ += ["TIMM", "Option", "Recipe", "Train"]

TIMM = "timm:"
"""What the names of timm's optimisers and schedules begin with."""

Option = bool | int | float | str | tuple[int, ...] | tuple[float, ...]
"""A setting that is passed on as it is."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a model gives for n clips."""

    logits: Tensor
    """(n, k)."""
    aux: Mapping[str, Tensor] = field(default_factory=dict)
    """What the method's loss or cost needs: masks, actions, logits of each step."""


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What a detector finds in one frame: n boxes, the most certain one first."""

    boxes: Tensor
    """(n, 4) float32: left, top, right, bottom in pixels of the frame as the model was given it."""
    scores: Tensor
    """(n,) float32 in 0 ... 1."""
    labels: Tensor
    """(n,) int64: the class of each."""

    def __post_init__(self) -> None:
        num_boxes = len(self.scores)
        if self.boxes.shape != (num_boxes, 4) or self.labels.shape != (num_boxes,):
            raise ValueError(
                f"{num_boxes} scores need boxes (n, 4) and as many labels, got shapes {tuple(self.boxes.shape)} and "
                f"{tuple(self.labels.shape)}"
            )

    def to(self, device: torch.device | str) -> "Detections":
        """The same on `device`."""
        return Detections(boxes=self.boxes.to(device), scores=self.scores.to(device), labels=self.labels.to(device))


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Multiply-accumulates of one call, counted from the operators that ran, and the model's size."""

    macs: int
    num_params: int
    by_operator: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which clips a model sees, and how they are sampled and cropped."""

    dataset: str
    num_frames: int
    """t, frames of a clip."""
    num_classes: int | None = None
    """k; None: as vidprep knows it of the data set, or as the shards say."""
    train_split: str = "train"
    val_split: str = "val"
    train_sampler: Sampler = "segments"
    """How one clip is taken, in evaluation too: see `vidprep.sampling`."""
    dense_window: int = 64
    """Frames that a clip of "dense", "window" and "strided" spans; its stride is window // t."""
    leading_frames: int = 0
    """Of a "jittered" clip: so many frames are sampled over the whole video on their own, and lie before the others."""
    short: Short = "last"
    """What fills up videos shorter than the clip: see `vidprep.sampling.sample_segments`."""
    min_frames: int = 1
    """Videos with fewer frames are left out, and counted in the log."""
    class_order: Literal["official", "sorted"] = "official"
    """How the model's classes are numbered: as the shards' are, or by name."""
    flip_pairs: tuple[tuple[int, int], ...] | None = None
    """Classes, numbered as the model's, that a flip turns into each other; None: as the shards say."""
    fit: Fit = "crop"
    """How a frame comes to the square that the model sees: "crop" cuts it out, "pad" takes the whole frame, in bytes,
    and leaves the rest empty (`vidprep.load.transforms.FitTransform`); for detection."""
    resize: int
    """Short side in pixels before the evaluation crop; with `fit` "pad" the most that it may be."""
    crop: int
    """Side of the square that the model sees; with `fit` "pad" the most that a frame's long side may be."""
    antialias: bool = True
    """Resize as PIL does before the evaluation crop; off: as OpenCV."""
    resize_floats: bool = False
    """Resize floats instead of bytes before the evaluation crop: see `vidprep.load.transforms.EvalTransform`."""
    train_crop: TrainCrop = "multi_scale"
    """How training crops: see `vidprep.load.transforms.TrainTransform`."""
    num_repeats: int = 1
    """Training views of a clip, each changed and cropped anew (repeated augmentation); the batch grows by them."""
    rand_augment: str = ""
    """Training operations in timm's notation, such as "rand-m7-n4-mstd0.5-inc1"; "" applies none."""
    random_erasing: float = 0.0
    """Probability that a box of a training clip is filled with noise."""
    train_scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    """Multi-scale crop: fractions of the short side."""
    max_aspect_step: int = 1
    """Positions in `train_scales` by which a crop's two sides may differ."""
    flip: bool = True
    """Horizontal flip of half the training clips; off where the classes tell left from right."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        _at_least(1, num_frames=self.num_frames, dense_window=self.dense_window, crop=self.crop)
        _at_least(1, min_frames=self.min_frames)
        if self.num_classes is not None:
            _at_least(1, num_classes=self.num_classes)
        if self.fit == "crop" and self.resize < self.crop:
            raise ValueError(f"resize must be at least crop = {self.crop} pixels, got {self.resize}")
        if self.fit == "pad" and not 1 <= self.resize <= self.crop:
            raise ValueError(f'with fit = "pad" resize is at most crop = {self.crop} pixels, got {self.resize}')
        if not self.train_scales or not all(0 < scale <= 1 for scale in self.train_scales):
            raise ValueError(f"train_scales are fractions of the short side in (0, 1], got {self.train_scales}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be above 0, got {self.std}")


@dataclass(frozen=True, kw_only=True)
class Train:
    """How the weights are found."""

    epochs: int
    batch_size: int
    """Clips of one optimiser step, over all devices."""
    lr: float
    optimizer: str = "sgd"
    """PyTorch's "sgd" and "adamw", or one of timm's: "timm:lamb", "timm:lookahead_adamw"."""
    optimizer_options: Mapping[str, Option] = field(default_factory=dict)
    """Further arguments of timm's optimiser, such as betas."""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "step"
    """"step" and "cosine" change between epochs; "cosine_steps" with every step, down to `min_lr`; or one of timm's:
    "timm:cosine", "timm:poly"."""
    schedule_options: Mapping[str, Option] = field(default_factory=dict)
    """Further arguments of timm's schedule, such as warmup_lr."""
    lr_milestones: tuple[int, ...] = ()
    """Epochs (from 0) at which a step schedule divides the rate by 10, and "timm:multistep" by its own factor."""
    warmup_epochs: int = 0
    """Epochs over which the rate rises linearly, from 0 or from timm's warmup_lr."""
    min_lr: float = 0.0
    """Where a "cosine_steps" schedule ends, or one of timm's."""
    lr_batch_size: int | None = None
    """`lr` and `min_lr` are for steps of this many clips, and scaled by batch_size / lr_batch_size; None: as given."""
    clip_grad: float | None = None
    """Largest L2 norm of the whole gradient."""
    accumulate: int = 1
    """Passes whose gradients make one step: each sees batch_size / (accumulate x devices) clips."""
    sync_norms: bool = False
    """Batch norms take their statistics from the passes of all devices together (of one pass, not of a whole step)."""
    ema_decay: float | None = None
    """Exponential moving average of the weights after every step, which is what is evaluated and saved; None: none."""
    seed: int = 1007
    amp: Literal["none", "bf16", "fp16"] = "none"
    """Autocast precision of training; "fp16" on a GPU only. Validation is in float32."""
    compile: bool = False
    """Training passes go through `torch.compile`; validation does not."""
    init: str = "none"
    """Initial weights: "none", "imagenet" (torchvision's), "kinetics400" (PyTorchVideo's X3D), or a checkpoint file,
    ours or published."""

    def __post_init__(self) -> None:
        _at_least(1, epochs=self.epochs, batch_size=self.batch_size, accumulate=self.accumulate)
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate must divide batch_size = {self.batch_size}, got {self.accumulate}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay lies between 0 and 1, got {self.ema_decay}")
        _at_least(0, momentum=self.momentum, weight_decay=self.weight_decay, warmup_epochs=self.warmup_epochs)
        if not self.lr > 0 or (self.clip_grad is not None and not self.clip_grad > 0):
            raise ValueError(f"lr and clip_grad must be above 0, got {self.lr} and {self.clip_grad}")
        if self.lr_batch_size is not None:
            _at_least(1, lr_batch_size=self.lr_batch_size)
        if not 0 <= self.min_lr <= self.lr:
            raise ValueError(f"min_lr lies between 0 and lr = {self.lr}, got {self.min_lr}")
        for name, known in (("optimizer", ("sgd", "adamw")), ("schedule", ("step", "cosine", "cosine_steps"))):
            value = getattr(self, name)
            if value not in known and not value.startswith(TIMM):
                ours = " or ".join(f'"{one}"' for one in known)
                raise ValueError(f'{name} is {ours}, or one of timm\'s as "{TIMM}NAME"; got {value!r}')
            if getattr(self, f"{name}_options") and not value.startswith(TIMM):
                raise ValueError(
                    f'{name}_options are for timm\'s ("{TIMM}NAME"); {name} = "{value}" does not read them'
                )
        if self.min_lr and self.schedule in ("step", "cosine"):
            raise ValueError(f'min_lr is for schedule = "cosine_steps"; "{self.schedule}" does not read it')


@dataclass(frozen=True, kw_only=True)
class Eval:
    """How a video is scored by `vidmodels eval`. While training, one clip and its centre crop stand for a video."""

    num_clips: int = 1
    num_crops: int = 1
    clip_placement: ClipPlacement = "even"
    """Where several clips lie: see `vidprep.sampling.sample_clips`."""
    crop_placement: CropPlacement = "along_longer_side"
    """Where three crops lie: see `vidprep.load.transforms.EvalTransform`."""
    resize: int | None = None
    """Short side in pixels; None: as `data.resize`."""
    crop: int | None = None
    """Side of the square that the model sees; None: as `data.crop`."""
    short: Short | None = None
    """What fills up videos shorter than the clip where `num_clips` is 1; None: as `data.short`."""
    batch_size: int = 32
    """Videos of a batch."""
    clips_per_call: int = 64
    """The model sees at most so many clips at once, however many views a batch of videos has."""
    average: Literal["logits", "probabilities"] = "logits"
    """What is averaged over the views of a video."""
    metric: Literal["top1", "map", "map50"] = "top1"
    """What picks the best checkpoint; "map50" of detectors, for which a video stands with one frame while training."""
    best_from_epoch: int = 0
    """First epoch (from 0) that may be the best: those before a method's cost target is in force should not be."""
    renumber_present_classes: bool = False
    """The published code's mAP, which is wrong where a class has no clip: see `metrics.mean_average_precision`."""

    def __post_init__(self) -> None:
        _at_least(1, num_clips=self.num_clips, num_crops=self.num_crops, batch_size=self.batch_size)
        _at_least(1, clips_per_call=self.clips_per_call)
        _at_least(1, **{name: side for name in ("resize", "crop") if (side := getattr(self, name)) is not None})
        _at_least(0, best_from_epoch=self.best_from_epoch)


@dataclass(frozen=True, kw_only=True)
class Published:
    """What the authors report, for the comparison beside ours."""

    top1: float | None = None
    top5: float | None = None
    map: float | None = None
    map50: float | None = None
    """Of detectors: mean average precision at an overlap (IoU) of 0.5."""
    gmacs: float | None = None
    """Multiply-accumulates in 1e9, per video or as `convention` says."""
    gmacs_views: int = 1
    """Clips whose sum `gmacs` is: the views of a video, where the authors count them all."""
    gmacs_figure: str = ""
    """Which of the figures of `Method.summarise` counts in that convention; "": all MACs that run."""
    convention: str = ""
    num_params: int | None = None
    checkpoint: str = ""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole experiment as data."""

    name: str
    method: str
    source: str
    """Paper table, or command and commit of the authors' code."""
    data: Data
    model: Any
    """An instance of the method's `Config`."""
    train: Train | None = None
    """None: nothing to train, or not published."""
    eval: Eval = field(default_factory=Eval)
    published: Published | None = None

    def __post_init__(self) -> None:
        baked_in = getattr(self.model, "num_frames", self.data.num_frames)
        if baked_in != self.data.num_frames:
            raise ValueError(
                f"model.num_frames = {baked_in}, but data.num_frames = {self.data.num_frames}; this model takes clips "
                "of the length that it is built for, so set both"
            )
        side = getattr(self.model, "image_size", None)
        if side is not None and {side} != {self.data.crop, self.eval_crop}:
            raise ValueError(
                f"model.image_size = {side}, but crops are {self.data.crop} pixels in training and {self.eval_crop} in "
                "evaluation; this model takes frames of the size that it is built for, so set all alike"
            )
        if self.data.fit == "pad" and (self.eval.resize or self.eval.crop or self.eval.num_crops > 1):
            raise ValueError('eval: with fit = "pad" frames are whole; leave resize, crop and num_crops out')
        if self.data.fit == "crop" and self.eval_resize < self.eval_crop:
            raise ValueError(f"eval: resize must be at least crop = {self.eval_crop} pixels, got {self.eval_resize}")

    @property
    def eval_resize(self) -> int:
        """Short side in pixels when a video is scored."""
        return self.eval.resize or self.data.resize

    @property
    def eval_crop(self) -> int:
        """Side in pixels of the square that the model sees when a video is scored."""
        return self.eval.crop or self.data.crop


@dataclass(frozen=True, kw_only=True)
class EarlyExit:
    """How videos leave a method's network early, for those methods that have exits."""

    logits: Callable[[nn.Module, Output], Tensor]
    """(trainable form, what it gave in evaluation) -> logits of all exits (n, e, k)."""
    macs: Callable[[Any, int], list[int]]
    """(config, num_classes) -> multiply-adds of a video that leaves at each exit, e of them."""
    budgets: Callable[[Any], tuple[float, ...]]
    """config -> the published budgets, as q of `exits.exit_shares`, ascending."""
    make: Callable[..., nn.Module]
    """(trainable form, thresholds=(e,) or None, criterion=...) -> the form that stops. Its `forward` takes clips on
    demand, too, and gives `aux["exit_steps"]`; its `first_frames` are the places in a clip that it needs of all."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """How a model's costly first part is run once for every video and the rest learns on what it gave."""

    compute: Callable[[nn.Module, Tensor], Tensor]
    """(model, clips (n, t, c, h, w)) -> features (n, time, d)."""
    rest: Callable[[nn.Module], nn.Module]
    """The part that learns: `forward(features (n, time, d, 1, 1)) -> Output`; shares the model's parameters."""
    prefixes: tuple[str, ...]
    """What the names of the entries begin with that features depend on."""
    settings: Callable[[Any], dict[str, Any]]
    """(config) -> those of its settings that features depend on, as JSON has them."""
    freeze: str
    """Which setting keeps these entries as they are, in training: "model.trained = ..."."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method is a value: its parts, and nothing that the loops do not need."""

    name: str
    paper: str
    """URL, or the title where no address is known."""
    Config: type
    """Frozen dataclass of only what the paper varies."""
    build: Callable[[Any, int], nn.Module]
    """(config, num_classes) -> trainable form; `forward(frames (n t c h w), **training_only) -> Output`."""
    training_step: Callable[[nn.Module, Batch, float], dict[str, Tensor]]
    """(model, batch, epoch) -> {"loss": ..., and terms to log}; epoch counts from 0."""
    param_groups: Callable[[nn.Module, Train], list[dict[str, Any]]]
    make_dynamic: Callable[[nn.Module], nn.Module]
    """The form that really skips; shares the parameters."""
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    """Published state dict -> ours; pure."""
    summarise: Callable[[nn.Module, Output], dict[str, float]]
    """Method's own figures of one evaluated batch, each a mean per clip, e.g. {"gmacs_masked": 0.2}; may be {}."""
    draw: Callable[[nn.Module, Tensor, Tensor], Image] | None = None
    """(model, clip (t, c, h, w), the same as pixels in 0 ... 1) -> a picture of what it keeps; None: nothing to see."""
    drawn_recipe: str = ""
    """The recipe that is drawn when none is named."""
    early_exit: EarlyExit | None = None
    """None: no exits, all of a clip is always looked at."""
    features: Features | None = None
    """For training on cached features; None: it trains on clips only."""
    export_obstacle: str = ""
    """Why the dynamic form cannot be written down as a fixed list of operators; "": it can (`vidmodels export`)."""


def _at_least(least: int, **values: float) -> None:
    for name, value in values.items():
        if not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
