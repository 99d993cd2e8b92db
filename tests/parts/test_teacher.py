"""Teachers and averages: closed form, invisibility, what is saved."""

import copy

import pytest
import torch
from torch import nn

from hilum.core.errors import HilumError
from hilum.core.types import Progress
from hilum.parts.schedules import cosine
from hilum.parts.teacher import EMA, Teacher


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()


class Method(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.student = net()
        self.teacher = Teacher({"encoder": self.student}, **options)


def perturb(module, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype))


def test_closed_form():
    """After n updates towards students s_1 .. s_n: m^n t + sum (1-m) m^(n-i) s_i."""
    method, m, n = Method(momentum=0.9), 0.9, 7
    expected = [m**n * p.detach().clone() for p in method.student.parameters()]
    for i in range(1, n + 1):
        perturb(method.student, i)
        method.teacher.update(Progress(step=i))
        for e, s in zip(expected, method.student.parameters()):
            e += (1 - m) * m ** (n - i) * s.detach()
    for e, t in zip(expected, method.teacher["encoder"].parameters()):
        assert torch.allclose(e, t, atol=1e-12)


def test_momentum_follows_its_schedule():
    method = Method(momentum=cosine(0.5, 1.0))
    before = [p.clone() for p in method.teacher["encoder"].parameters()]
    perturb(method.student, 1)
    method.teacher.update(Progress(step=10, total_steps=10))  # momentum 1: nothing moves
    assert all(torch.equal(a, b) for a, b in zip(before, method.teacher["encoder"].parameters()))
    method.teacher.update(Progress(step=0, total_steps=10))  # momentum 1/2: the mean
    for b, s, t in zip(before, method.student.parameters(), method.teacher["encoder"].parameters()):
        assert torch.allclose(t, (b + s) / 2, atol=1e-12)


def test_invisible_to_optimiser_and_ddp():
    method = Method(momentum=0.9)
    alone = [n for n, _ in net().named_parameters()]
    assert [n for n, _ in method.named_parameters()] == [f"student.{n}" for n in alone]
    assert all(n.startswith("student.") for n, _ in method.named_buffers())
    assert sum(isinstance(m, nn.BatchNorm1d) for m in method.modules()) == 1
    assert not any(p.requires_grad for p in method.teacher["encoder"].parameters())


def test_moving_teacher_is_saved_and_restored_frozen_one_is_not():
    moving, frozen = Method(momentum=0.5), Method(momentum=None)
    perturb(moving.student, 3)
    moving.teacher.update()
    state = moving.state_dict()
    assert {k for k in state if k.startswith("teacher.")} == {f"teacher.encoder.{k}" for k in net().state_dict()}
    assert not any(k.startswith("teacher.") for k in frozen.state_dict())
    other = Method(momentum=0.5)
    other.load_state_dict(state)
    for a, b in zip(moving.teacher["encoder"].state_dict().values(), other.teacher["encoder"].state_dict().values()):
        assert torch.equal(a, b)
    frozen.load_state_dict(frozen.state_dict())
    with pytest.raises(RuntimeError, match="Unexpected"):
        frozen.load_state_dict(state)
    state.pop("teacher.encoder.0.weight")
    with pytest.raises(RuntimeError, match="Missing"):
        other.load_state_dict(state)
    state["teacher.encoder.0.weight"] = torch.zeros(9, 9)
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(state)


def test_frozen_never_moves_reset_takes_over():
    method = Method(momentum=None)
    before = method.teacher["encoder"][0].weight.clone()
    perturb(method.student, 1)
    method.teacher.update(Progress(step=5))
    assert torch.equal(method.teacher["encoder"][0].weight, before)
    method.teacher.reset()
    assert torch.equal(method.teacher["encoder"][0].weight, method.student[0].weight)


@pytest.mark.parametrize(("rule", "expected"), [("copy", 2.0), ("average", 0.5)])
def test_buffers(rule, expected):
    method = Method(momentum=0.75, buffers=rule)
    method.student[1].running_mean.fill_(2.0)
    method.student[1].num_batches_tracked.fill_(8)
    method.teacher.update()
    assert (method.teacher["encoder"][1].running_mean == expected).all()
    assert method.teacher["encoder"][1].num_batches_tracked == 8


def test_mode_device_and_dtype():
    method = Method(momentum=0.9)
    assert not method.train().teacher["encoder"].training
    follower = Method(momentum=0.9, train=True)
    assert follower.teacher["encoder"].training
    assert not follower.eval().teacher["encoder"].training
    assert method.float().teacher["encoder"][0].weight.dtype == torch.float32


def test_shared_weights_stay_shared_and_move_once():
    a = net()
    teacher = Teacher({"a": a, "b": nn.Sequential(a[0], nn.Linear(4, 1).double())}, momentum=0.5)
    assert teacher["b"][0].weight is teacher["a"][0].weight
    start = a[0].weight.detach().clone()
    with torch.no_grad():
        a[0].weight.add_(1.0)
    teacher.update()
    assert torch.allclose(teacher["a"][0].weight, start + 0.5)


def test_deep_copy_follows_its_own_student():
    twin = copy.deepcopy(Method(momentum=0.0))
    perturb(twin.student, 2)
    twin.teacher.update()
    assert torch.equal(twin.teacher["encoder"][0].weight, twin.student[0].weight)


def test_errors():
    method = Method(momentum=0.9)
    with pytest.raises(HilumError, match="encoder"):
        method.teacher["encodr"]
    method.student[0] = nn.Identity()
    with pytest.raises(HilumError, match="no longer"):
        method.teacher.update()


def test_ema_closed_form_swap_and_restore():
    module = net()
    ema, start = EMA(module, momentum=0.9), module[0].weight.detach().clone()
    perturb(module, 1)
    live = module[0].weight.detach().clone()
    ema.update(Progress(step=1))
    average = 0.9 * start + 0.1 * live
    with pytest.raises(ZeroDivisionError), ema.swap():
        assert torch.allclose(module[0].weight, average, atol=1e-12)
        with pytest.raises(HilumError):
            ema.update()
        _ = 1 / 0
    assert torch.equal(module[0].weight, live)
    other = EMA(net(5), momentum=0.9)
    other.load_state_dict(ema.state_dict())
    with other.swap():
        assert torch.allclose(other.module[0].weight, average, atol=1e-12)
    with pytest.raises(HilumError, match="other tensors"):
        other.load_state_dict({"x": start})
