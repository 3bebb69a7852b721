from typing import Any

import pytest
import torch
from torch import nn

from vidmodels.optimizers import make_optimizer, optimizer_faults
from vidmodels.types import Train
from vidprep.errors import UsageError


def settings(**changes: Any) -> Train:
    return Train(**{"epochs": 8, "batch_size": 4, "lr": 0.1, **changes})


def groups() -> list[dict[str, Any]]:
    weights, biases = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    return [
        {"name": "weights", "params": [weights], "lr": 0.1, "lr_scale": 1.0, "weight_decay": 1e-4},
        {"name": "biases", "params": [biases], "lr": 0.2, "lr_scale": 2.0, "weight_decay": 0.0},
    ]


def test_the_plain_names_are_pytorchs() -> None:
    sgd = make_optimizer(settings(momentum=0.8), groups())
    assert type(sgd) is torch.optim.SGD
    assert [(group["momentum"], group["nesterov"]) for group in sgd.param_groups] == [(0.8, False)] * 2
    assert type(make_optimizer(settings(optimizer="adamw"), groups())) is torch.optim.AdamW


@pytest.mark.parametrize("name", ["timm:lamb", "timm:sgd", "timm:lookahead_adamw", "timm:muon"])
def test_timms_keep_the_groups_of_the_method(name: str) -> None:
    optimizer = make_optimizer(settings(optimizer=name), groups())
    kept = [[group[key] for key in ("name", "lr", "lr_scale", "weight_decay")] for group in optimizer.param_groups]
    assert kept == [["weights", 0.1, 1.0, 1e-4], ["biases", 0.2, 2.0, 0.0]]


def test_options_and_momentum_reach_timms_optimiser() -> None:
    lamb = make_optimizer(settings(optimizer="timm:lamb", optimizer_options={"betas": (0.9, 0.98)}), groups())
    assert [group["betas"] for group in lamb.param_groups] == [(0.9, 0.98)] * 2
    sgd = make_optimizer(settings(optimizer="timm:momentum", momentum=0.7), groups())
    assert [(group["momentum"], group["nesterov"]) for group in sgd.param_groups] == [(0.7, False)] * 2


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("lam", {}, "optimizer: timm has no 'lam', did you mean lamb"),
        ("lookahead_lam", {}, "optimizer: timm has no 'lam', did you mean lamb"),
        ("lamb", {"beta": 0.9}, "optimizer_options.beta: no argument of timm's lamb, did you mean betas?"),
        ("lamb", {"lr": 0.9}, "optimizer_options.lr: set train.lr instead"),
        ("lamb", {"betas": 0.9}, r"optimizer_options.betas: timm's lamb has (0.9, 0.999) there, got 0.9"),
        ("sgd", {"nesterov": 1}, "optimizer_options.nesterov: timm's sgd has False there, got 1"),
        ("adamw", {"betas": (2.0, 0.9)}, "optimizer_options: timm's adamw does not take these: Invalid beta"),
        ("adahessian", {}, "optimizer: timm's adahessian needs second derivatives"),
    ],
)
def test_what_is_wrong_is_said_before_training(name: str, options: dict[str, Any], sentence: str) -> None:
    train = settings(optimizer=f"timm:{name}", optimizer_options=options)
    [fault] = optimizer_faults(train)
    assert fault.startswith(sentence)
    with pytest.raises(UsageError, match=r"^train\.optimizer"):
        make_optimizer(train, groups())


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the package itself is looked for")
def test_an_optimiser_that_needs_a_gpu_is_refused_without_one() -> None:
    [fault] = optimizer_faults(settings(optimizer="timm:fusedadam"))
    assert fault == "optimizer: timm's fusedadam is not to be had here (CUDA required for APEX optimizers)"


def test_names_that_are_neither_ours_nor_timms_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r'optimizer is "sgd" or "adamw", or one of timm\'s as "timm:NAME"; got \'adam'
    ):
        settings(optimizer="adam")
    with pytest.raises(ValueError, match=r'optimizer_options are for timm\'s .*; optimizer = "sgd" does not read them'):
        settings(optimizer_options={"nesterov": True})
