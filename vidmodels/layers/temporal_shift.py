"""Temporal shift: some channels of a frame are taken from its neighbours; no parameters, no arithmetic."""

from typing import Literal, get_args

from torch import Tensor

__all__ = ["ShiftMode", "temporal_shift"]

ShiftMode = Literal["none", "online", "offline"]


def temporal_shift(
    x: Tensor, *, num_frames: int, mode: ShiftMode, shift_div: int = 8, copy_edges: bool = False
) -> Tensor:
    """Move one or two parts of `shift_div` of the channels along time.

    With f = c // shift_div:

        channels   online             offline
        [0, f)     unchanged          frame t takes frame t + 1
        [f, 2f)    frame t takes frame t - 1, in both modes
        [2f, c)    unchanged          unchanged

    Online moves the SECOND part only: the first one would need the future, and stays where it is.

    Args:
        x: (n*t, c, h, w), clip by clip.
        num_frames: t.
        mode: "none" returns x itself.
        shift_div: parts that the channels are divided into.
        copy_edges: frames without the neighbour keep their own values; otherwise they get zeros.

    Raises:
        ValueError: the rows of x are not whole clips, or no such mode.

    Source: TSM (Lin et al., 2019); "online" as in the published code of TAPS, which differs from TSM's.
    """
    if mode == "none":
        return x
    if mode not in get_args(ShiftMode):
        raise ValueError(f"no temporal shift {mode!r}; expected {', '.join(get_args(ShiftMode))}")
    if x.shape[0] % num_frames:
        raise ValueError(f"{len(x)} frames are not whole clips of {num_frames}; give (n*t, c, h, w)")
    fold = x.shape[1] // shift_div
    clips = x.view(-1, num_frames, *x.shape[1:])
    shifted = clips.clone()
    from_next, from_previous = slice(0, fold), slice(fold, 2 * fold)
    if mode == "offline":
        shifted[:, :-1, from_next] = clips[:, 1:, from_next]
        if not copy_edges:
            shifted[:, -1, from_next] = 0
    shifted[:, 1:, from_previous] = clips[:, :-1, from_previous]
    if not copy_edges:
        shifted[:, 0, from_previous] = 0
    return shifted.flatten(0, 1)
