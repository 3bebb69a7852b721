from pathlib import Path

import torch
from torch import Tensor, nn

from vidmodels.breakdown import Coverage
from vidmodels.comparison import Comparison, Form, ScoredRun
from vidmodels.cost import LatencyStats
from vidmodels.evaluate import classify
from vidmodels.recipes import load_recipe
from vidmodels.runs import Run
from vidmodels.types import Batch, Output


class Gated(nn.Module):
    """A model of two frames that gives the same scores for every clip, and the gates that it is told."""

    def __init__(self, masks: Tensor) -> None:
        super().__init__()
        self.masks = masks

    def forward(self, frames: Tensor) -> Output:
        return Output(logits=torch.ones(len(frames), 2), aux={"masks": self.masks})


def scored(masks: Tensor) -> Form:
    batch = Batch(
        video_id=[f"video{k}" for k in range(len(masks))],
        frames=torch.zeros(len(masks), 1, 2, 3, 4, 4),
        labels=torch.zeros(len(masks), dtype=torch.int64),
        pts_seconds=torch.zeros(len(masks), 1, 2, dtype=torch.float64),
    )
    latency = LatencyStats(median_ms=1.0, min_ms=1.0, max_ms=1.0, cpu_median_ms=1.0, runs=1)
    result = classify(Gated(masks), [batch], num_classes=2, keep_masks=True)
    return Form(result=result, gmacs_per_clip=1.0, latency=latency)


def compare(trainable: Tensor, dynamic: Tensor) -> Comparison:
    run = Run(name="taps", recipe=load_recipe("taps/toy"), weights=Path("best.safetensors"), data=None)
    forms = {"trainable": scored(trainable), "dynamic": scored(dynamic)}
    return Comparison(
        runs=(ScoredRun(run=run, forms=forms, classes=("a", "b"), coverage=Coverage(num_listed=3, num_scored=3)),),
        timed_clips=1,
        heading="",
    )


def test_gates_that_rounding_flips_are_counted_and_reported() -> None:
    masks = (torch.rand(3, 2, 11, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    flipped = masks.clone()
    flipped[1, 0, 0] = 1 - flipped[1, 0, 0]
    flipped[1, 1, 10] = 1 - flipped[1, 1, 10]
    comparison = compare(masks, flipped)
    assert comparison.runs[0].different_gates == (2, 1)
    assert any("2 gates differ between the forms, in 1 of 3 clips" in line for line in comparison.remarks)
    entry = comparison.to_json()["runs"][0]
    assert (entry["different_gates"], entry["clips_with_different_gates"]) == (2, 1)
    assert not any("gates differ" in line for line in compare(masks, masks).remarks)
