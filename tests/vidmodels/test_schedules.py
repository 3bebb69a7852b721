import math

import pytest

from vidmodels.schedules import learning_rate_factor
from vidmodels.types import Train


def test_a_step_schedule_divides_by_ten_at_each_milestone() -> None:
    train = Train(epochs=50, batch_size=64, lr=0.01, lr_milestones=(20, 40))
    factors = [learning_rate_factor(train, epoch) for epoch in (0, 19.99, 20, 39, 40, 49)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_a_cosine_falls_from_one_once_an_epoch() -> None:
    train = Train(epochs=10, batch_size=64, lr=0.01, schedule="cosine")
    assert learning_rate_factor(train, 0) == 1.0
    assert learning_rate_factor(train, 5) == pytest.approx(0.5)
    assert learning_rate_factor(train, 9.5) == learning_rate_factor(train, 9)
    assert learning_rate_factor(train, 9) == pytest.approx(0.5 * (1 + math.cos(0.9 * math.pi)))


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_the_warm_up_rises_with_every_step_from_zero(schedule: str) -> None:
    train = Train(epochs=1000, batch_size=64, lr=0.01, schedule=schedule, warmup_epochs=2)  # type: ignore[arg-type]
    factors = [learning_rate_factor(train, epoch) for epoch in (0, 0.5, 1, 1.5, 2)]
    assert factors == pytest.approx([0, 0.25, 0.5, 0.75, 1], rel=1e-5)
