"""TAPS at its published size against ResNet-50: as people run it, with norms folded and channels-last, and in our form.

4 clips of 8 frames of 224 x 224 a call, float32, 2 threads, random weights. The policies run, but what they decide is
given: a third of the gated channels of every frame is kept, in one of three ways:

    same          all frames of a clip keep the same channels, other clips others: the best case
    similar       masks change as little from frame to frame as those of the golden cases: a clip's union is 1.15 times
                  what a frame keeps, and clips are alike too
    independent   every frame keeps channels of its own: a clip's union is nearly everything, the worst case

Sides take turns; `resnet50` is torchvision's network on all frames, `folded` the same with its norms folded
(`torch.nn.utils.fusion`) and channels-last, `dense` what TAPS makes of it without gates: shifted in time, and run by
the same code as the gated form.
"""

from typing import Literal, get_args

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import ResNet, resnet50

from scripts.benchmarks.runner import Ratio, Side, compare, machine_facts, measure, print_rates, print_ratios
from vidmodels.cost import count_cost
from vidmodels.layers.packed import PackedLinear
from vidmodels.memory import keep_freed_memory
from vidmodels.methods.taps.dynamic import DynamicTaps, make_dynamic
from vidmodels.methods.taps.model import Taps, build
from vidmodels.methods.taps.policy import Policy
from vidmodels.recipes import load_recipe

__all__ = ["PACKAGES", "Masks", "decide_as_told", "draw_logits", "run"]

PACKAGES = ("torch", "torchvision", "numpy")
NUM_CLIPS, NUM_CLASSES, KEEP = 4, 200, 1 / 3
VARIATION = 0.1
"""Of "similar" logits from frame to frame, beside 1 from channel to channel."""

Masks = Literal["same", "similar", "independent"]


def run(*, rounds: int) -> tuple[dict[str, Ratio], dict[str, object]]:
    """Measure and print; the ratios and the machine."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    keep_freed_memory()
    recipe = load_recipe("taps/mini_kinetics_online")
    num_frames, size = recipe.data.num_frames, recipe.eval_crop
    clips = torch.randn(NUM_CLIPS, num_frames, 3, size, size)
    plain: ResNet = resnet50(num_classes=NUM_CLASSES).eval()
    folded = fold(resnet50(num_classes=NUM_CLASSES).eval()).to(memory_format=torch.channels_last)
    gated = make_dynamic(build(recipe.model, NUM_CLASSES))
    dense = make_dynamic(build(type(recipe.model)(**{**vars(recipe.model), "pruning": False}), NUM_CLASSES))
    nhwc = clips.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    decided = {
        masks: draw_logits(gated, masks, num_clips=NUM_CLIPS, num_frames=num_frames) for masks in get_args(Masks)
    }

    def classify(model: nn.Module, frames: Tensor, logits: list[Tensor] | None = None) -> int:
        if logits is not None:
            decide_as_told(gated, logits)
        with torch.inference_mode():
            model(frames)
        return NUM_CLIPS

    sides = [
        Side(name="resnet50", run=lambda: classify(plain, clips.flatten(0, 1))),
        Side(name="folded", run=lambda: classify(folded, nhwc)),
        Side(name="dense", run=lambda: classify(dense, clips)),
        *(
            Side(name=f"taps, {masks} masks", run=lambda logits=logits: classify(gated, clips, logits))  # type: ignore[misc]
            for masks, logits in decided.items()
        ),
    ]
    console = Console()
    dense_macs = count_cost(dense, clips).macs
    by_macs = {}
    for masks, logits in decided.items():
        decide_as_told(gated, logits)
        by_macs[masks] = dense_macs / count_cost(gated, clips).macs
        console.print(f"{masks}: {by_macs[masks]:.2f} times fewer multiply-accumulates than the dense form")
    rates = measure(sides, rounds=rounds)
    print_rates(f"{NUM_CLIPS} clips of {num_frames} x {size} x {size} a call", rates, unit="clips / CPU s")
    ratios = {
        f"taps_{masks}_vs_{other}": compare(rates[f"taps, {masks} masks"], rates[side])
        for masks in decided
        for other, side in (("plain", "resnet50"), ("folded", "folded"), ("optimised", "dense"))
    }
    ratios["dense_vs_folded"] = compare(rates["dense"], rates["folded"])
    print_ratios("rate over rate", ratios)
    return ratios, machine_facts(PACKAGES)


def draw_logits(
    model: Taps, masks: Masks, *, num_clips: int, num_frames: int, keep: float = KEEP, seed: int = 0
) -> list[Tensor]:
    """Gate logits (n, t, gates) of each block, of which every frame keeps the same number."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    logits = []
    for width in model.num_gates:
        if masks == "same":
            drawn = draw(num_clips, 1, width).expand(-1, num_frames, -1)
        elif masks == "similar":
            drawn = draw(1, 1, width) + VARIATION * draw(num_clips, num_frames, width)
        else:
            drawn = draw(num_clips, num_frames, width)
        least_kept = drawn.topk(max(1, round(keep * width)), dim=-1).values[..., -1:]
        logits.append(drawn - least_kept)
    return logits


class ToldGate(PackedLinear):
    """The policy's last layer, which does its work and then says what it was told, clip after clip."""

    told: Tensor
    num_said = 0

    def forward(self, hidden: Tensor) -> Tensor:
        super().forward(hidden)
        first, self.num_said = self.num_said, (self.num_said + len(hidden)) % len(self.told)
        return self.told[first : first + len(hidden)]


def decide_as_told(model: DynamicTaps, logits: list[Tensor]) -> None:
    """Let each policy run and then decide by these logits (n, t, gates)."""
    for policy, told in zip(_policies(model), logits, strict=True):
        if not isinstance(policy.gate, ToldGate):
            gate = ToldGate(policy.gate.in_features, policy.gate.out_features, device="meta")
            gate.load_state_dict(policy.gate.state_dict(keep_vars=True), assign=True)
            policy.gate = gate
        policy.gate.told = told


def fold(network: ResNet) -> ResNet:
    """The network with every batch norm folded into the convolution before it."""
    for block in network.modules():
        pairs = [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("0", "1")]
        for conv, norm in pairs:
            first, second = getattr(block, conv, None), getattr(block, norm, None)
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                setattr(block, conv, fuse_conv_bn_eval(first, second))
                setattr(block, norm, nn.Identity())
    return network


def _policies(model: Taps) -> list[Policy]:
    return [module for module in model.policies.modules() if isinstance(module, Policy)]
