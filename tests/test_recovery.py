"""Distillation and recalibration: the numbers, and what must not be touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyperprune import Distillation, HyperpruneError, hyperize, recalibrate_
from tests.models import Net, residual

X = (5, 3, 8, 8)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def net_that(run: Any) -> nn.Module:
    return Net({"layer": nn.Linear(3, 3)}, run)


def test_the_loss_is_hintons() -> None:
    teacher, x, labels = residual().eval(), torch.randn(X), torch.tensor([0, 1, 2, 0, 1])
    logits = torch.randn(5, 3, requires_grad=True)
    mixed = Distillation(teacher, temperature=3.0, weight=0.25)(x, logits, F.cross_entropy(logits, labels))
    p, q = (teacher(x) / 3).softmax(1), (logits / 3).softmax(1)
    expected = 0.75 * F.cross_entropy(logits, labels) + 0.25 * 9 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(mixed, expected)
    mixed.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_at_the_ends_only_one_part_is_left(weight: float) -> None:
    teacher, x, loss = residual().eval(), torch.randn(X), torch.tensor(5.0)
    mixed = Distillation(teacher, weight=weight)(x, teacher(x).detach(), loss)
    torch.testing.assert_close(mixed, torch.tensor(0.0 if weight else 5.0))


def test_positions_of_an_image_count_alike() -> None:
    teacher = nn.Conv2d(3, 4, 1)
    x, logits = torch.randn(X), torch.randn(5, 4, 8, 8)
    rows = [t.permute(0, 2, 3, 1).reshape(-1, 4) for t in (logits, teacher(x).detach())]
    flat = Distillation(Net({}, lambda net, y: rows[1]), weight=1.0)(x, rows[0], torch.tensor(0.0))
    torch.testing.assert_close(Distillation(teacher, weight=1.0)(x, logits, torch.tensor(0.0)), flat)


@pytest.mark.parametrize("training", [True, False])
def test_the_teacher_stays_as_it_was(training: bool) -> None:
    teacher = residual(dropout=0.5).train(training)
    teacher.block1.eval()
    before, modes = state(teacher), [module.training for module in teacher.modules()]
    logits = torch.randn(5, 3, requires_grad=True)
    random = torch.get_rng_state()
    loss = Distillation(teacher)(torch.ones(X), logits, logits.sum())
    again = Distillation(teacher)(torch.ones(X), logits, logits.sum())
    loss.backward()
    assert torch.equal(loss, again), "dropout must be off"
    assert [module.training for module in teacher.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_module_that_holds_the_distillation_does_not_train_the_teacher() -> None:
    student = residual()
    count = len(list(student.parameters()))
    student.distill = Distillation(residual())
    assert len(list(student.parameters())) == count
    assert not any("distill" in name for name in student.state_dict())


def test_inputs_may_be_keyword_arguments() -> None:
    teacher = Net({"fc": nn.Linear(3, 2)}, lambda net, a, b: net.fc(a + b))
    a, b, logits = torch.randn(4, 3), torch.randn(4, 3), torch.randn(4, 2)
    by_name = Distillation(teacher)({"a": a, "b": b}, logits, torch.tensor(1.0))
    assert torch.equal(by_name, Distillation(teacher)((b, a), logits, torch.tensor(1.0)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Distillation("resnet50"), "must be a torch.nn.Module"),  # type: ignore[arg-type]
        (lambda: Distillation(nn.Linear(3, 3), temperature=0.0), "above 0"),
        (lambda: Distillation(nn.Linear(3, 3), temperature=float("nan")), "above 0"),
        (lambda: Distillation(nn.Linear(3, 3), temperature=float("inf")), "above 0"),
        (
            lambda: Distillation(nn.Linear(3, 3))(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2)),
            "of shape .2.: reduce",
        ),
        (lambda: Distillation(nn.Linear(3, 3))(torch.ones(2, 3), torch.ones(2, 3), 1.0), "one number, not float"),  # type: ignore[arg-type]
        (lambda: Distillation(nn.Linear(3, 3), weight=1.5), "between 0 and 1"),
    ],
)
def test_wrong_settings_are_refused(make: Any, message: str) -> None:
    with pytest.raises(HyperpruneError, match=message):
        make()


@pytest.mark.parametrize(
    ("teacher", "logits", "message"),
    [
        (net_that(lambda net, x: {"logits": net.layer(x)}), torch.zeros(2, 3), "answers with dict"),
        (net_that(lambda net, x: net.layer(x)), {"logits": torch.zeros(2, 3)}, "not dict"),
        (net_that(lambda net, x: net.layer(x)), torch.zeros(3), "shape \\[3\\]"),
        (net_that(lambda net, x: net.layer(x)), torch.zeros(2, 4), "\\[2, 3\\], the student's \\[2, 4\\]"),
        (nn.Linear(3, 3, device="meta"), torch.zeros(2, 3), "teacher.to\\(device\\)"),
    ],
    ids=["teacher's answer", "student's answer", "no classes", "other classes", "device"],
)
def test_answers_that_do_not_fit_are_explained(teacher: nn.Module, logits: Any, message: str) -> None:
    with pytest.raises(HyperpruneError, match=message):
        Distillation(teacher)(torch.randn(2, 3), logits, torch.tensor(1.0))


def batches(count: int = 6) -> list[Tensor]:
    return list(2 + 3 * torch.randn(count, *X))


def test_statistics_are_the_plain_average_over_the_batches() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.ReLU(), nn.Dropout(0.5))
    seen = batches()
    assert recalibrate_(model, iter(seen)) is model
    features = [model[0](x).detach() for x in seen]
    mean = torch.stack([f.mean((0, 2, 3)) for f in features]).mean(0)
    var = torch.stack([f.transpose(0, 1).flatten(1).var(1) for f in features]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, var)
    assert model[1].momentum == 0.3


def test_the_second_layer_sees_what_the_first_gives_in_training_without_dropout() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.9), nn.BatchNorm2d(3))
    (x,) = batches(1)
    recalibrate_(model.train(), [x])
    first = F.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(model[2].running_var, first.transpose(0, 1).flatten(1).var(1))


def test_only_statistics_change_and_modes_come_back() -> None:
    model = residual(dropout=0.5).train()
    model.block1.eval()
    before, modes, seen = state(model), [m.training for m in model.modules()], batches(2)
    random = torch.get_rng_state()
    recalibrate_(model, seen)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all("running" in name or "num_batches" in name for name in changed)
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("wrap", [lambda x: (x, torch.zeros(5)), lambda x: [x, 0], lambda x: {"x": x}])
def test_batches_come_as_loaders_yield_them(wrap: Any) -> None:
    plain, wrapped = (Net({"bn": nn.BatchNorm2d(3)}, lambda net, x: net.bn(x)) for _ in range(2))
    seen = batches(2)
    recalibrate_(plain, seen)
    recalibrate_(wrapped, [wrap(x) for x in seen])
    assert torch.equal(plain.bn.running_mean, wrapped.bn.running_mean)


def test_a_network_without_running_statistics_needs_no_batches() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.LayerNorm(8))
    assert recalibrate_(model, []) is model


@pytest.mark.parametrize(
    ("seen", "kind"),
    [
        ([], HyperpruneError),
        ([torch.full(X, torch.nan)], HyperpruneError),
        ([torch.zeros(X), torch.zeros(1)], RuntimeError),
    ],
    ids=["none", "not finite", "does not fit"],
)
def test_when_it_fails_the_old_statistics_stay(seen: list[Tensor], kind: type[Exception]) -> None:
    model = residual()
    before = state(model)
    with pytest.raises(kind):
        recalibrate_(model, seen)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


def test_layers_that_no_batch_reaches_keep_their_statistics() -> None:
    """Batch norm by domain: only the first one is fed."""
    norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])
    model = Net({"norms": norms}, lambda self, x, domain=0: self.norms[domain](x))
    for x in batches(3):
        model(x, domain=1)
    before = state(norms[1])
    recalibrate_(model, batches())
    assert all(torch.equal(value, before[name]) for name, value in norms[1].state_dict().items())
    assert int(norms[0].num_batches_tracked) == 6


def test_a_searched_network_in_half_precision_takes_the_batches_that_a_plain_one_takes() -> None:
    hyper = hyperize(residual().bfloat16(), torch.randn(X).bfloat16())
    assert recalibrate_(hyper, batches(2)) is hyper
