"""ViT-B on clips of 16 frames of 224 x 224 (1568 tokens): with STA at r = 64, plain, and timm's ViT on as many tokens.

4 clips a call, float32, 2 threads, random weights: what is dropped depends on them, how much is dropped does not.
"""

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from scripts.benchmarks.runner import Ratio, Side, compare, machine_facts, measure, print_rates, print_ratios
from vidmodels.methods.sta.cost import clip_cost
from vidmodels.methods.sta.model import StaConfig, build

__all__ = ["PACKAGES", "run"]

PACKAGES = ("torch", "timm", "numpy")
NUM_CLIPS, NUM_CLASSES, PRUNE_NUMBER = 4, 400, 64


def run(*, rounds: int) -> tuple[dict[str, Ratio], dict[str, object]]:
    """Measure and print; the ratios and the machine."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    plain, pruned = StaConfig(), StaConfig(prune_number=PRUNE_NUMBER)
    clips = torch.randn(NUM_CLIPS, plain.num_frames, 3, plain.image_size, plain.image_size)
    sides = [
        _side("vit", build(plain, NUM_CLASSES), clips),
        _side("sta_r64", build(pruned, NUM_CLASSES), clips),
        _side("timm", timm_vit(), torch.randn(NUM_CLIPS, 3, *TIMM_IMAGE)),
    ]
    rates = measure(sides, rounds=rounds)
    print_rates(f"ViT-B, 1568 tokens, {NUM_CLIPS} clips a call", rates, unit="clips / CPU s")
    by_macs = clip_cost(plain, NUM_CLASSES).macs / clip_cost(pruned, NUM_CLASSES).macs
    faster = compare(rates["sta_r64"], rates["vit"])
    ratios = {
        "sta_r64_vs_vit": faster,
        f"sta_r64_share_of_{by_macs:.2f}_by_macs": compare([run / by_macs for run in faster.runs], [1.0] * rounds),
        "vit_vs_timm": compare(rates["vit"], rates["timm"]),
    }
    print_ratios("rate over rate", ratios)
    return ratios, machine_facts(PACKAGES)


TIMM_IMAGE = (448, 896)
"""28 x 56 patches: 1568 tokens of one image."""


def timm_vit() -> nn.Module:
    """timm's ViT-B without a class token, averaging its tokens; fused attention is its default."""
    model: nn.Module = VisionTransformer(
        img_size=TIMM_IMAGE, patch_size=16, class_token=False, global_pool="avg", num_classes=NUM_CLASSES
    )
    return model


def _side(name: str, model: nn.Module, clips: Tensor) -> Side:
    model.eval()

    def classify() -> int:
        with torch.inference_mode():
            model(clips)
        return len(clips)

    return Side(name=name, run=classify)
