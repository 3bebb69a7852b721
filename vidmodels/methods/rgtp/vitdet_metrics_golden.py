"""Golden cases of what lies around the detector: how frames are resized, and how detections are counted."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidmodels.cases import Array, Component, Config, UnsupportedCase
from vidmodels.detection import count_coco
from vidmodels.types import Detections
from vidprep.load.transforms import FitTransform

__all__ = ["COMPONENTS"]


def frame_resize(
    config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]
) -> Mapping[str, Array]:
    """Frames and boxes in each of the settings' sizes."""
    outputs: dict[str, Array] = {}
    for name, setting in config["settings"].items():
        frame = torch.from_numpy(inputs[setting["frame"]])
        fit = FitTransform(short_side=setting["short_target"], long_side=setting["long_limit"])
        resized = fit(frame)
        _, box_map = fit.window(*frame.shape[-2:])
        _, height, width = resized.shape
        values = resized.double()
        outputs[f"{name}.size"] = np.array(resized.shape)
        outputs[f"{name}.stats"] = np.array([float(values.mean()), float(values.std())])
        outputs[f"{name}.slice"] = resized[:, :: max(1, height // 8), :: max(1, width // 8)].to(torch.int16).numpy()
        outputs[f"{name}.box"] = box_map(torch.from_numpy(inputs["boxes"]).float())[0].numpy()
    return outputs


def mean_average_precision(
    config: Config, inputs: Mapping[str, Any], state: dict[str, Tensor], wanted: Collection[str]
) -> Mapping[str, Array]:
    """COCO's figures of given detections."""
    expected = {"recall_points": 101, "max_detections": 100, "small_area_below": 32**2, "large_area_from": 96**2}
    if any(config[name] != value for name, value in expected.items()):
        raise UnsupportedCase(f"average precision is COCO's: {expected}.")
    tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in inputs.items()}
    frames = range(config["num_frames"])
    counted = count_coco(
        [
            Detections(
                boxes=tensors["boxes"][tensors["frame"] == frame],
                scores=tensors["scores"][tensors["frame"] == frame],
                labels=tensors["labels"][tensors["frame"] == frame],
            )
            for frame in frames
        ],
        [tensors["gt_boxes"][tensors["gt_frame"] == frame] for frame in frames],
        [tensors["gt_labels"][tensors["gt_frame"] == frame] for frame in frames],
        per_class=True,
    )
    per_class = np.full(config["num_classes"], -1.0)
    per_class[counted["classes"].reshape(-1)] = counted["map_per_class"].reshape(-1)
    names = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_100")
    return {name: np.asarray(float(counted[name])) for name in names} | {"map_per_class": per_class}


COMPONENTS: Mapping[str, Component] = {
    "frame_resize": frame_resize,
    "mean_average_precision": mean_average_precision,
}
