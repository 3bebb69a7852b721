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


def test_a_cosine_over_steps_begins_after_a_warm_up_that_reaches_one() -> None:
    train = Train(epochs=4, batch_size=64, lr=0.01, min_lr=0.001, schedule="cosine_steps", warmup_epochs=1)
    factors = [learning_rate_factor(train, step / 5, steps_per_epoch=5) for step in range(20)]
    assert factors[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert factors[5] == 1
    assert factors[5:] == sorted(set(factors[5:]), reverse=True)
    assert factors[-1] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 14 / 15)))


def test_rates_for_another_batch_are_scaled() -> None:
    train = Train(epochs=10, batch_size=64, lr=0.01, lr_batch_size=256, lr_milestones=(5,))
    assert [learning_rate_factor(train, epoch) for epoch in (0, 5)] == pytest.approx([0.25, 0.025])


def test_a_least_rate_belongs_to_the_schedule_that_reads_it() -> None:
    with pytest.raises(ValueError, match='min_lr is for schedule = "cosine_steps"; "cosine" does not read it'):
        Train(epochs=10, batch_size=64, lr=0.01, min_lr=0.001, schedule="cosine")
    with pytest.raises(ValueError, match=r"min_lr lies between 0 and lr = 0\.01, got 0\.1"):
        Train(epochs=10, batch_size=64, lr=0.01, min_lr=0.1, schedule="cosine_steps")
