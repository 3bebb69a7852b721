import numpy as np
import pytest
import torch

from vidmodels.metrics import action_accuracy, first_label, mean_average_precision, topk_accuracy


def test_top_k_counts_the_true_class_among_the_k_highest() -> None:
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]])
    labels = torch.tensor([2, 0])
    assert [topk_accuracy(scores, labels, k) for k in (1, 2, 3)] == [50.0, 100.0, 100.0]


def test_more_than_all_classes_counts_as_all() -> None:
    assert topk_accuracy(torch.zeros(4, 3), torch.tensor([0, 1, 2, 2]), 5) == 100.0


def test_ties_go_to_the_lower_class() -> None:
    scores = torch.zeros(1, 3)
    assert [topk_accuracy(scores, torch.tensor([label]), 1) for label in range(3)] == [100.0, 0.0, 0.0]


def test_scores_that_are_not_numbers_are_refused() -> None:
    scores = torch.tensor([[float("nan"), 0.0]])
    with pytest.raises(ValueError, match="not a number"):
        topk_accuracy(scores, torch.tensor([0]), 1)
    with pytest.raises(ValueError, match="not a number"):
        mean_average_precision(scores, torch.ones(1, 2))


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels \(n,\), got \(2, 3\) and \(3,\)"):
        topk_accuracy(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), 1)
    with pytest.raises(ValueError, match=r"targets \(n, k\), got \(2, 3\) and \(2,\)"):
        mean_average_precision(torch.zeros(2, 3), torch.zeros(2))


def test_average_precision_by_hand() -> None:
    # ranks of class 0's clips: 1 and 3 -> (1/1 + 2/3) / 2; class 1 has none -> 0
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    targets = torch.tensor([[1, 0], [0, 0], [1, 0]])
    mean, average = mean_average_precision(scores, targets)
    assert average.tolist() == pytest.approx([100 * (1 + 2 / 3) / 2, 0.0])
    assert mean == pytest.approx(100 * (1 + 2 / 3) / 4)


def test_average_precision_is_that_of_a_loop(rng: np.random.Generator) -> None:
    scores = rng.random((30, 5))
    targets = rng.random((30, 5)) < 0.3
    expected = []
    for k in range(5):
        hits, total = 0, 0.0
        for rank, clip in enumerate(np.argsort(-scores[:, k], kind="stable"), start=1):
            if targets[clip, k]:
                hits += 1
                total += hits / rank
        expected.append(100 * total / max(1, hits))
    _, average = mean_average_precision(torch.from_numpy(scores), torch.from_numpy(targets))
    assert average.tolist() == pytest.approx(expected)


def test_renumbering_compares_later_classes_with_the_wrong_columns() -> None:
    targets = torch.eye(3)[[0, 2, 0, 2]]  # class 1 has no clips
    scores = targets * 0.8 + 0.1
    mean, average = mean_average_precision(scores, targets)
    assert average.tolist() == [100.0, 0.0, 100.0]
    trapped, trapped_average = mean_average_precision(scores, targets, renumber_present_classes=True)
    assert trapped_average.tolist() == pytest.approx([100.0, 100 * (1 / 2 + 2 / 4) / 2, 0.0])
    assert trapped < mean


def test_renumbering_changes_nothing_where_every_class_occurs(rng: np.random.Generator) -> None:
    scores, targets = torch.from_numpy(rng.random((12, 4))), torch.eye(4)[[0, 1, 2, 3] * 3]
    plain, trapped = (mean_average_precision(scores, targets, renumber_present_classes=on)[0] for on in (False, True))
    assert plain == trapped


def test_the_first_label_is_the_smallest_class() -> None:
    assert first_label(torch.tensor([2, 0])).tolist() == [2, 0]
    assert first_label(torch.tensor([[0.0, 1, 1], [1, 0, 1]])).tolist() == [1, 0]
    with pytest.raises(ValueError, match="a training clip has no label"):
        first_label(torch.zeros(1, 3))


def test_an_action_is_right_where_verb_and_noun_are() -> None:
    verbs = torch.tensor([[0.7, 0.3], [0.6, 0.4]])
    nouns = torch.tensor([[0.1, 0.9, 0.0], [0.5, 0.3, 0.2]])
    # the pairs of the second clip: 0.3 0.18 0.12 and 0.2 0.12 0.08
    labels = torch.tensor([[0, 1], [1, 1]])
    assert action_accuracy(verbs, nouns, labels, 1) == 50.0
    assert action_accuracy(verbs, nouns, labels, 4) == 50.0  # of equal pairs the lower verb comes first
    assert action_accuracy(verbs, nouns, labels, 5) == 100.0
    with pytest.raises(ValueError, match=r"labels \(n, 2\), got .* and \(2,\)"):
        action_accuracy(verbs, nouns, labels[:, 0], 1)
