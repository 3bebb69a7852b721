"""Where and when to look: both policies, the rectangles they give, and the frames that are chosen by weight.

    glance maps (n, g, c, h, w) -- SpatialPolicy --> actions (n, g, 4) -- interpolate_actions --> (n, s, 4) -- resample
    glance features (n, g, c) -- TemporalPolicy --> logits (n, g) -- softmax --> weights -- choose_frames --> (n, f)

An action is (y, x, height, width), each in (0, 1), ROW first. Letters: g glance frames, s candidates, f focus frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, interpolate

__all__ = [
    "PatchGeometry",
    "SpatialPolicy",
    "TemporalPolicy",
    "choose_frames",
    "draw_removed_frames",
    "interpolate_actions",
    "monte_carlo_logits",
]


@dataclass(frozen=True, kw_only=True)
class PatchGeometry:
    """How an action becomes a rectangle, and a rectangle a patch.

    On a frame a rectangle's sides are `min_extent` + (image_size - min_extent) * action pixels, whatever the patch's
    size: the published range is 96 to 224.
    """

    image_size: int = 224
    """Side of a frame in pixels."""
    min_extent: int = 96
    """Smallest side of a rectangle in pixels."""
    patch_size: int = 128
    """Points along a side of a patch."""

    @property
    def unit_action(self) -> float:
        """Height and width of the action whose rectangle is exactly as large as the patch."""
        return (self.patch_size - self.min_extent) / (self.image_size - self.min_extent)

    def points(self, map_size: int) -> int:
        """Points along a side of a patch of a map with `map_size` cells a side: the patch's share, rounded."""
        return round(map_size * self.patch_size / self.image_size)

    def extents(self, actions: Tensor, points: int) -> Tensor:
        """(..., 4) -> (..., 2) height and width in pixels or cells."""
        scale = actions[..., 2:] * ((self.image_size - self.min_extent) / self.patch_size)
        return points * (scale + self.min_extent / self.patch_size)

    def boxes(self, actions: Tensor, *, side: int, points: int) -> Tensor:
        """Rectangles (..., 4): y1, x1, y2, x2 in pixels of the frame or cells of the map.

        Args:
            actions: (..., 4).
            side: of the frame or map.
            points: along a side of the patch.

        Source: specification section 2.4.
        """
        extent = self.extents(actions, points)
        corner = actions[..., :2] * (side - extent)
        return torch.cat([corner, corner + extent], dim=-1)

    def resample(self, images: Tensor, actions: Tensor, *, points: int) -> Tensor:
        """Patches (n, c, points, points) of images (n, c, side, side), bilinear, with zeros beyond the border.

        A gradient reaches the actions. Where a rectangle is larger than the patch nothing is smoothed.
        """
        side = images.shape[-1]
        y1, x1, y2, x2 = self.boxes(actions, side=side, points=points).unbind(-1)
        zero = torch.zeros_like(y1)
        theta = torch.stack(
            [(x2 - x1) / side, zero, (x1 + x2) / side - 1, zero, (y2 - y1) / side, (y1 + y2) / side - 1], dim=-1
        ).view(-1, 2, 3)
        grid = affine_grid(theta, [images.shape[0], images.shape[1], points, points], align_corners=False)
        return grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


class SpatialPolicy(nn.Module):
    """One rectangle a glance frame, or one a clip, from the glance network's maps.

    Args:
        channels: c of the maps.
        map_size: their side.
        hidden_dim: width of the three hidden convolutions.
        num_joint_frames: glance frames that share a rectangle: 1, or all of a clip.

    Source: specification sections 2.3 and 8.
    """

    def __init__(self, channels: int, map_size: int, *, hidden_dim: int = 128, num_joint_frames: int = 1) -> None:
        super().__init__()
        hidden: list[nn.Module] = []
        for index in range(3):
            kernel, c = (1, channels) if index == 0 else (3, hidden_dim)
            conv = nn.Conv3d(c, hidden_dim, kernel, padding=kernel // 2, bias=False)
            hidden += [conv, nn.BatchNorm3d(hidden_dim), nn.ReLU()]
        last = nn.Conv3d(hidden_dim, 4, (num_joint_frames, map_size, map_size), bias=False)
        self.encoder = nn.Sequential(*hidden, last)

    def forward(self, maps: Tensor) -> Tensor:
        """(n, g, c, h, w) -> actions (n, g, 4), or (n, 1, 4) where a clip shares one."""
        scores: Tensor = self.encoder(maps.transpose(1, 2))
        return torch.sigmoid(scores[..., 0, 0].transpose(1, 2))


class TemporalPolicy(nn.Module):
    """A logit a glance frame: two convolutions over three frames each, then one value.

    Source: specification section 2.5.
    """

    def __init__(self, channels: int, *, hidden_dim: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, hidden_dim, (3, 1), padding=(1, 0), bias=False),
            nn.BatchNorm2d(hidden_dim),
            nn.ReLU(),
            nn.Conv2d(hidden_dim, hidden_dim, (3, 1), padding=(1, 0), bias=False),
            nn.BatchNorm2d(hidden_dim),
            nn.ReLU(),
            nn.Conv2d(hidden_dim, 1, 1, bias=False),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(n, g, c) -> (n, g)."""
        logits: Tensor = self.layers(features.transpose(1, 2)[..., None])
        return logits[:, 0, :, 0]


def interpolate_actions(actions: Tensor, num_candidates: int) -> Tensor:
    """Actions of all candidates (n, s, 4) from those of the glance frames (n, g, 4), linear in time.

    Frame i takes position (i + 0.5) * g / s - 0.5, held at the ends: with s = 3 g the centre of every three frames gets
    exactly its glance frame's action.
    """
    return interpolate(actions.transpose(1, 2), num_candidates, mode="linear", align_corners=False).transpose(1, 2)


@torch.no_grad()
def choose_frames(weights: Tensor, *, num_candidates: int, num_focus: int, draws: Tensor | None = None) -> Tensor:
    """Frames to focus on, (n, f) int64, strictly ascending.

    The weights are a piecewise constant density over the video, one piece a glance frame. Its quantiles at (i + u) / f
    are taken; where two fall on one frame the later moves on, and the last ones are pushed back into the video.
    Equal weights, 48 candidates, 16 frames -> 1 4 7 ... 46.

    Args:
        weights: (n, g), each row sums to 1.
        num_candidates: s.
        num_focus: f, at most s.
        draws: (n, f) u in [0, 1), for training; None takes 0.5.

    Source: specification section 2.6; in float32 and in its order of operations.
    """
    num_glance = weights.shape[1]
    cumulative = weights.cumsum(1)
    cumulative[:, -1] = 1.0
    cumulative = torch.cat([cumulative.new_zeros(weights.shape[0], 1), cumulative], dim=1)
    steps = torch.arange(num_focus, device=weights.device)
    offsets = 0.5 if draws is None else draws
    thresholds = ((steps + offsets) / num_focus).to(weights.dtype).expand(weights.shape[0], num_focus).contiguous()
    # Clamped for a draw of exactly 0, which falls before the first piece.
    piece = torch.searchsorted(cumulative, thresholds).clamp(1, num_glance) - 1
    low, high = cumulative.gather(1, piece), cumulative.gather(1, piece + 1)
    quantile = (piece + 1) / num_glance * (thresholds - low) - piece / num_glance * (thresholds - high)
    quantile = quantile / (high - low).clamp(min=torch.finfo(weights.dtype).tiny)
    frames = (quantile * num_candidates).floor().long()
    # Every frame lies at least one after its predecessor: a running maximum of what it is ahead of its number.
    frames = (frames - steps).cummax(1).values + steps
    return torch.minimum(frames, num_candidates - num_focus + steps)


def draw_removed_frames(
    weights: Tensor, *, num_removals: int, num_samples: int, generator: torch.Generator | None = None
) -> list[Tensor]:
    """For i = 1 ... num_removals - 1: (n, samples, i) distinct glance frames, drawn one after another by weight."""
    probabilities = weights.detach().float().clamp(min=1e-12).repeat_interleave(num_samples, dim=0)
    return [
        torch.multinomial(probabilities, count, replacement=False, generator=generator).view(
            len(weights), num_samples, count
        )
        for count in range(1, num_removals)
    ]


def monte_carlo_logits(weights: Tensor, frame_logits: Tensor, removed: Sequence[Tensor]) -> Tensor:
    """What trains the temporal policy: logits (n, k) averaged by weight over the frames that random removal leaves.

    For each sample the removed frames' weights become 0 and the rest is divided by its sum, a constant for the
    gradient; without removal nothing is divided. The mean over samples, then over the numbers of removed frames.

    Args:
        weights: (n, g).
        frame_logits: (n, g, k).
        removed: (n, samples, i) frames for i = 1, 2, ...; nothing is removed for i = 0.

    Source: specification section 3.2.
    """
    shares = [weights]
    for frames in removed:
        kept = torch.ones(*frames.shape[:2], weights.shape[1], dtype=weights.dtype, device=weights.device)
        kept.scatter_(2, frames, 0.0)
        rest = weights[:, None] * kept
        total = rest.detach().sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        shares.append((rest / total).mean(1))
    # Linear in the logits: the shares are averaged first.
    return torch.einsum("ng,ngk->nk", torch.stack(shares).mean(0), frame_logits)
