"""Boxes, anchors, proposals and detections against cases computed by hand."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from vidmodels.backbones.detection import (
    BoxHeads,
    DetectionLimits,
    ProposalLimits,
    RegionProposals,
    RpnOutput,
    best_boxes,
    decode_boxes,
    encode_boxes,
    levels_of_boxes,
    make_anchors,
    propose,
)


def test_decoding_turns_encoding_back() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(2, 20, 2, generator=generator) * 50
    sizes = 1 + torch.rand(2, 20, 2, generator=generator) * 50
    boxes, reference = torch.cat([corners, corners + sizes], dim=-1)
    for weights in ((1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)):
        assert_close(decode_boxes(encode_boxes(boxes, reference, weights), reference, weights), boxes)


def test_a_box_of_each_class_is_decoded_from_the_same_reference() -> None:
    reference = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    deltas = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0, 0.5, 0.0, 100.0]])
    expected = [0.0, 0.0, 10.0, 20.0, 10.0, 20.0 - 625.0, 20.0, 20.0 + 625.0]  # a height grows at most 1000 / 16 times
    assert_close(decode_boxes(deltas, reference), torch.tensor([expected]))


def test_anchors_lie_around_the_corners_of_cells_unrounded() -> None:
    anchors = make_anchors(2, 3, stride=8, size=32, aspect_ratios=(0.5, 1.0, 2.0))
    assert anchors.shape == (18, 4)
    wide = 32 * 2**0.5
    assert_close(anchors[0], torch.tensor([-wide / 2, -wide / 4, wide / 2, wide / 4]))
    assert anchors[1].tolist() == [-16.0, -16.0, 16.0, 16.0]
    assert anchors[4].tolist() == [-8.0, -16.0, 24.0, 16.0]  # one cell to the right
    assert anchors[10].tolist() == [-16.0, -8.0, 16.0, 24.0]  # one cell down


def rpn_of(boxes: Tensor, logits: Tensor) -> RpnOutput:
    """One level whose anchors are the boxes, left as they are."""
    return RpnOutput(anchors=(boxes,), logits=(logits[None],), deltas=(torch.zeros(1, len(boxes), 4),))


def test_proposals_are_clipped_sorted_and_without_duplicates() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 11], [20, 20, 99, 40], [-9, -9, 0, 5], [30, 0, 40, 9]])
    logits = torch.tensor([1.0, 2.0, 3.0, 9.0, float("nan")])
    limits = ProposalLimits(num_candidates=10, num_proposals=5)
    (kept,), (scores,) = propose(rpn_of(boxes, logits), image_size=64, limits=limits)
    assert kept.tolist() == [[20.0, 20.0, 64.0, 40.0], [0.0, 0.0, 10.0, 11.0]]
    assert scores.tolist() == [3.0, 2.0]


def test_levels_follow_the_size_of_boxes() -> None:
    sides = torch.tensor([10.0, 111.0, 113.0, 223.0, 225.0, 447.0, 449.0, 900.0])
    boxes = torch.stack([torch.zeros(8), torch.zeros(8), sides, sides], dim=1)
    assert levels_of_boxes(boxes, 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_detections_leave_out_the_background_which_is_the_last_class() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10, 5, 5, 9, 9], [0, 0, 10, 10, 20, 20, 30, 90]])
    probabilities = torch.tensor([[0.6, 0.05, 0.35], [0.5, 0.4, 0.1]])
    found = best_boxes(boxes, probabilities, image_size=64, limits=DetectionLimits())
    assert found.labels.tolist() == [0, 1]  # the second box of class 0 is the first one again; 0.05 is not above 0.05
    assert_close(found.scores, torch.tensor([0.6, 0.4]))
    assert found.boxes.tolist() == [[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 64.0]]
    few = best_boxes(boxes, probabilities, image_size=64, limits=DetectionLimits(max_detections=1))
    assert few.labels.tolist() == [0]


def test_heads_without_a_proposal_detect_nothing() -> None:
    heads = BoxHeads(3, channels=4).eval()
    levels = [torch.zeros(1, 4, side, side) for side in (16, 8, 4, 2)]
    nothing = torch.zeros(0, 4)
    out = heads(levels, [nothing])
    (found,) = heads.detect(out, [nothing], image_size=64, limits=DetectionLimits())
    assert found.boxes.shape == (0, 4)


@pytest.mark.parametrize("num_images", [1, 2])
def test_one_head_scores_all_levels(num_images: int) -> None:
    network = RegionProposals(channels=4)
    levels = [torch.randn(num_images, 4, side, side) for side in (16, 8, 4, 2, 1)]
    rpn = network(levels)
    assert [tuple(logits.shape) for logits in rpn.logits] == [(num_images, 3 * side**2) for side in (16, 8, 4, 2, 1)]
    assert all(len(a) == d.shape[1] == g.shape[1] for a, d, g in zip(rpn.anchors, rpn.deltas, rpn.logits, strict=True))
