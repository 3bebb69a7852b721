"""ViViT-B on clips of 32 frames of 224 x 224, plain and with RGTP at keep 0.215 and 0.066, for 4 views and for one.

Both are the same code: the plain network runs all time steps of all views together and with fused attention. Float32,
2 threads, random weights: which patches are kept depends on them, how many does not. Beside each ratio of rates is that
of the multiply-accumulates, counted as published.
"""

import torch
from torch import Tensor, nn

from scripts.benchmarks.runner import Ratio, Side, compare, machine_facts, measure, print_rates, print_ratios
from vidmodels.methods.rgtp import RgtpVivit, RgtpVivitConfig, build
from vidmodels.methods.rgtp.cost import clip_cost

__all__ = ["PACKAGES", "run"]

PACKAGES = ("torch", "numpy")
NUM_CLASSES = 400
NUM_VIEWS = (4, 1)
BASE = RgtpVivitConfig()
PRUNED = {
    "keep_0215": RgtpVivitConfig(mode="rollout", keep_ratio=0.215),
    "keep_0066": RgtpVivitConfig(mode="rollout", keep_ratio=0.066),
}


def run(*, rounds: int) -> tuple[dict[str, Ratio], dict[str, object]]:
    """Measure and print; the ratios and the machine."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    base = build(BASE, NUM_CLASSES).eval()
    models = {"base": base, **{name: _sharing(base, config) for name, config in PRUNED.items()}}
    clips = torch.randn(max(NUM_VIEWS), BASE.num_frames, 3, BASE.image_size, BASE.image_size)
    ratios: dict[str, Ratio] = {}
    for num_views in NUM_VIEWS:
        rates = measure([_side(name, model, clips[:num_views]) for name, model in models.items()], rounds=rounds)
        views = f"{num_views} views" if num_views > 1 else "1 view"
        print_rates(f"ViViT-B, 16 x 196 patches, {views} a call", rates, unit="views / CPU s")
        for name, config in PRUNED.items():
            by_macs = clip_cost(BASE, NUM_CLASSES).published / clip_cost(config, NUM_CLASSES).published
            faster = compare(rates[name], rates["base"])
            ratios[f"{name}_vs_base_{num_views}_views"] = faster
            ratios[f"{name}_{num_views}_views_share_of_{by_macs:.2f}_by_macs"] = compare(
                [once / by_macs for once in faster.runs], [1.0] * rounds
            )
    print_ratios("rate over rate", ratios)
    return ratios, machine_facts(PACKAGES)


def _sharing(base: RgtpVivit, config: RgtpVivitConfig) -> RgtpVivit:
    """A model of other settings with the parameters of `base`, not a copy of them."""
    model = build(config, NUM_CLASSES).eval()
    model.load_state_dict(base.state_dict(keep_vars=True), assign=True)
    return model


def _side(name: str, model: nn.Module, clips: Tensor) -> Side:
    def classify() -> int:
        with torch.inference_mode():
            model(clips)
        return len(clips)

    return Side(name=name, run=classify)
