import math
from typing import Any

import pytest
import torch
from timm.scheduler import create_scheduler_v2  # type: ignore[attr-defined]

from vidmodels.schedules import TIMM_SCHEDULES, learning_rate_factor, schedule_faults
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
    train = Train(epochs=1000, batch_size=64, lr=0.01, schedule=schedule, warmup_epochs=2)
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


def timm(name: str, **changes: Any) -> Train:
    return Train(**{"epochs": 8, "batch_size": 64, "lr": 0.1, "schedule": f"timm:{name}", **changes})


def rates_of_timm(train: Train, **options: Any) -> list[float]:
    """What timm's own training script sets, epoch by epoch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=train.lr)
    name = train.schedule.removeprefix("timm:")
    scheduler, num_epochs = create_scheduler_v2(optimizer, sched=name, num_epochs=train.epochs, **options)
    assert num_epochs == train.epochs
    rates = []
    for epoch in range(train.epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step(epoch + 1)
    return rates


@pytest.mark.parametrize("name", TIMM_SCHEDULES)
def test_timms_schedules_are_followed(name: str) -> None:
    train = timm(name, warmup_epochs=2, min_lr=0.001, lr_milestones=(5,), schedule_options={"warmup_lr": 0.01})
    assert schedule_faults(train) == []
    theirs = rates_of_timm(train, warmup_epochs=2, warmup_lr=0.01, min_lr=0.001, decay_milestones=[5])
    assert [0.1 * learning_rate_factor(train, epoch + 0.9) for epoch in range(8)] == pytest.approx(theirs)


def test_timms_schedules_may_count_steps() -> None:
    train = timm("cosine", schedule_options={"step_on_epochs": False})
    factors = [learning_rate_factor(train, step / 4, steps_per_epoch=4) for step in range(32)]
    assert factors == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 32)) for step in range(32)])


def test_cooldown_and_a_warm_up_before_the_schedule_are_part_of_its_epochs() -> None:
    cooled = timm("cosine", schedule_options={"cooldown_epochs": 2})
    assert [learning_rate_factor(cooled, epoch) for epoch in (3, 6, 7)] == pytest.approx([0.5, 0, 0])
    late = timm("cosine", warmup_epochs=2, schedule_options={"warmup_prefix": True})
    assert [learning_rate_factor(late, epoch) for epoch in (2, 5)] == pytest.approx([1, 0.5])
    assert schedule_faults(cooled) == schedule_faults(late) == []


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("cosin", {}, "schedule: timm has no 'cosin', did you mean cosine?"),
        ("plateau", {}, "schedule: timm's 'plateau' keeps its state in no checkpoint"),
        ("cosine", {"warmup": 3}, "schedule_options.warmup: no argument of timm's cosine, did you mean warmup_lr"),
        ("cosine", {"min_lr": 3}, "schedule_options.min_lr: set train.min_lr instead"),
        ("cosine", {"k_decay": "x"}, "schedule_options.k_decay: timm's cosine has 1.0 there, got 'x'"),
        (
            "cosine",
            {"cycle_limit": 2},
            "schedule_options: with cycles, warm-up and cooldown this schedule takes 16 epo",
        ),
        ("wsd", {"decay_epochs": 9}, "schedule_options: timm's wsd does not take these: wsd schedule requires"),
        ("step", {"decay_rate": -1}, "schedule_options: with these the rate is not a finite number from 0 on"),
    ],
)
def test_what_is_wrong_with_a_schedule_is_said_before_training(
    name: str, options: dict[str, Any], sentence: str
) -> None:
    options = {**options, "decay_epochs": 1} if name == "step" else options
    [fault] = schedule_faults(timm(name, schedule_options=options))
    assert fault.startswith(sentence)


def test_schedules_that_are_neither_ours_nor_timms_are_refused() -> None:
    with pytest.raises(ValueError, match=r'schedule is "step" or "cosine" or "cosine_steps", or one of timm\'s as'):
        Train(epochs=1, batch_size=1, lr=0.1, schedule="linear")
