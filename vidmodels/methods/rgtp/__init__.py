"""RGTP: tokens of a video transformer are pruned by the attention rollout of the frame before."""

from vidmodels.methods.rgtp.vivit import RgtpVivit, RgtpVivitConfig, StreamState, build

__all__ = ["RgtpVivit", "RgtpVivitConfig", "StreamState", "build"]
