import time

import pytest
import torch
from torch import Tensor, nn

from vidmodels.cost import compare_latency, count_cost, measure_latency


def test_macs_are_those_of_the_formulas() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5)
    )
    cost = count_cost(model, torch.zeros(2, 3, 4, 4))
    convolution, linear = 2 * 16 * 8 * 3 * 9, 2 * 8 * 16 * 5
    assert cost.macs == convolution + linear
    assert dict(cost.by_operator) == {"convolution": convolution, "addmm": linear}
    assert cost.num_params == (8 * 3 * 9 + 8) + 16 + (8 * 16 * 5 + 5)


@pytest.mark.parametrize("training", [True, False])
def test_counting_leaves_the_model_as_it_was(training: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count_cost(model, torch.randn(2, 3, 4, 4))
    assert model.training is training
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_work_that_is_skipped_is_not_seen() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 6, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.linear.weight[:3])

    assert count_cost(Half(), torch.zeros(1, 4)).macs == 12


def test_fast_attention_counts_like_plain_attention() -> None:
    tokens, width = 5, 8
    attention = nn.MultiheadAttention(width, 2, batch_first=True)
    x = torch.zeros(3, tokens, width)
    projections, products = 3 * tokens * width * 4 * width, 3 * 2 * tokens * tokens * width
    assert count_cost(attention, x, x, x).macs == projections + products
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_model_without_products_costs_nothing() -> None:
    cost = count_cost(nn.ReLU(), torch.zeros(1))
    assert (cost.macs, cost.num_params, dict(cost.by_operator)) == (0, 0, {})


def test_calls_take_turns_after_the_warm_up() -> None:
    order: list[str] = []
    stats = compare_latency({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, warmup=1, runs=2)
    assert order == ["a", "b", "b", "a", "a", "b"]  # none always follows the same one
    assert stats["a"].runs == 2


def test_latency_is_milliseconds_of_wall_clock_and_cpu() -> None:
    sleep = compare_latency({"sleep": lambda: time.sleep(0.02)}, warmup=0, runs=3)["sleep"]
    assert 19 <= sleep.min_ms <= sleep.median_ms <= sleep.max_ms
    assert sleep.cpu_median_ms < sleep.median_ms


def test_a_model_is_timed_without_gradients() -> None:
    outputs = []

    class Watched(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            outputs.append(super().forward(x))
            return outputs[-1]

    assert measure_latency(Watched(2, 2), torch.zeros(1, 2), warmup=1, runs=2).runs == 2
    assert [out.requires_grad for out in outputs] == [False] * 3


def test_no_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="expected runs >= 1"):
        compare_latency({}, runs=0)
