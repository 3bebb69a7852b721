"""ViTDet-B at 672 x 672 on a stream of 9 frames, a key frame with its cycle and the next one: RGTP against all tokens.

The backbone with its rollout, which is what the published costs count, and the whole detector. float32, 2 threads,
random weights; what is found is given, a box that moves to the right. Frames are 378 x 672, the rest of the square is
empty.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from scripts.benchmarks.runner import Ratio, Side, compare, machine_facts, measure, print_rates, print_ratios
from vidmodels.backbones.detection import Detections
from vidmodels.methods.rgtp.vitdet import Detector, VitDetConfig
from vidmodels.methods.rgtp.vitdet_cost import backbone_cost, detector_macs, heads_macs
from vidmodels.methods.rgtp.vitdet_stream import StreamState

__all__ = ["PACKAGES", "run"]

PACKAGES = ("torch", "torchvision", "numpy")
NUM_FRAMES, NUM_BASE_FRAMES, NUM_CLASSES = 9, 2, 30
UNIT_SECONDS = 60
KEEP_RATIOS = {"keep512": 0.29, "keep196": 0.111}


def run(*, rounds: int) -> tuple[dict[str, Ratio], dict[str, object]]:
    """Measure and print; the ratios and the machine."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    base = Detector(VitDetConfig(), NUM_CLASSES).eval()
    frames = torch.rand(3, 378, 672) + 0.05 * torch.randn(NUM_FRAMES, 3, 378, 672)
    models = {"base": base}
    for name, keep_ratio in KEEP_RATIOS.items():
        with torch.device("meta"):
            models[name] = Detector(VitDetConfig(keep_ratio=keep_ratio), NUM_CLASSES).eval()
        models[name].load_state_dict(base.state_dict(), assign=True)
    sides = []
    for name, model in models.items():
        # Frames without pruning are all alike: two of them tell what nine would.
        given = frames[: NUM_BASE_FRAMES if model is base else None]
        sides.append(Side(name=name, run=_stream(model, given, with_heads=False)))
        if name != "keep512":
            sides.append(Side(name=f"{name}, whole", run=_stream(model, given, with_heads=True)))
    rates = measure(sides, rounds=rounds)
    title = f"ViTDet-B, 672 x 672, streams of {NUM_FRAMES} frames: the backbone, and the whole detector"
    print_rates(title, rates, unit=f"frames / {UNIT_SECONDS} CPU s")
    ratios = {}
    for name in KEEP_RATIOS:
        faster = compare(rates[name], rates["base"])
        ratios[f"{name}_vs_base"] = faster
        by = {
            "published_macs": _published(base) / _published(models[name]),
            "macs_that_run": _running(base) / _running(models[name]),
        }
        for kind, ratio in by.items():
            share = compare([run / ratio for run in faster.runs], [1.0] * rounds)
            ratios[f"{name}_share_of_{ratio:.2f}_by_{kind}"] = share
    ratios["keep196_vs_base_whole"] = compare(rates["keep196, whole"], rates["base, whole"])
    print_ratios("rate over rate", ratios)
    return ratios, machine_facts(PACKAGES)


def _stream(model: Detector, frames: Tensor, *, with_heads: bool) -> Callable[[], int]:
    """Runs the frames from no state; the number of frames in `UNIT_SECONDS` for each second."""

    def run_frames() -> int:
        state: StreamState | None = None
        for number, frame in enumerate(frames):
            left = 100.0 + 8 * number
            found = Detections(
                boxes=torch.tensor([[left, 100.0, left + 160, 300.0]]),
                scores=torch.tensor([0.9]),
                labels=torch.tensor([0]),
            )
            computed = model.run_backbone(frame, state)
            if with_heads:
                model.run_heads(computed)
            state = model.follow(computed, found)
        return UNIT_SECONDS * len(frames)

    return run_frames


def _mean(model: Detector, count: Callable[..., int]) -> float:
    """The mean of a count over the stream's frames."""
    num_keys = len(range(0, NUM_FRAMES, model.config.reset_interval))
    key, other = (count(is_key=is_key) for is_key in (True, False))
    return (num_keys * key + (NUM_FRAMES - num_keys) * other) / NUM_FRAMES


def _published(model: Detector) -> float:
    """Of the backbone, in the published convention."""
    return _mean(model, lambda is_key: backbone_cost(model.config, is_key=is_key).published)


def _running(model: Detector) -> float:
    """Multiply-accumulates of the backbone that run at most."""
    heads = heads_macs(model.config, NUM_CLASSES)
    return _mean(model, lambda is_key: detector_macs(model.config, NUM_CLASSES, is_key=is_key) - heads)
