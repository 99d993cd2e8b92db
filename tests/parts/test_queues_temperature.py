"""Queue order through wraps and restarts; temperature's scale, limits and gradient."""

import math
from collections import deque

import pytest
import torch

from hilum.core.errors import HilumError
from hilum.core.types import Progress
from hilum.parts.queues import Queue
from hilum.parts.temperature import Temperature


def test_queue_is_a_deque():
    queue, model = Queue(2, 7), deque(maxlen=7)
    stream = iter(torch.arange(1000.0))
    for n in (3, 2, 5, 0, 7, 20, 1, 6):
        rows = torch.stack([next(stream).expand(2) for _ in range(n)]) if n else torch.zeros(0, 2)
        queue.push(rows.requires_grad_())
        model.extend(rows.detach())
        assert queue.filled == len(model)
        assert torch.equal(queue.rows(), torch.stack(list(model)))
    assert not queue.rows().requires_grad
    restored = Queue(2, 7)
    restored.load_state_dict(queue.state_dict())
    restored.push(torch.full((1, 2), -1.0))
    queue.push(torch.full((1, 2), -1.0))
    assert torch.equal(restored.rows(), queue.rows())


def test_empty_queue_holds_nothing_and_ids_keep_their_type():
    assert Queue(3, 4).rows().shape == (0, 3)
    ids = Queue(1, 4, dtype=torch.int64)
    ids.push(torch.tensor([[2**40]]))
    assert ids.rows().tolist() == [[2**40]]


def test_temperature_divides_and_learns():
    temperature = Temperature(0.1)
    logits = torch.tensor([1.0, 2.0])
    assert torch.allclose(temperature(logits), logits / 0.1)
    assert torch.allclose(temperature.value, torch.tensor(0.1))
    temperature(logits).sum().backward()
    assert torch.allclose(temperature.logit_scale.grad, torch.tensor(30.0))  # d(3 e^s)/ds
    assert temperature.logit_scale.ndim == 0  # hence no weight decay


def test_fixed_temperature_is_saved_but_not_trained():
    fixed = Temperature(0.07, learn=False)
    assert not list(fixed.parameters())
    assert "logit_scale" in fixed.state_dict()


def test_clamp_after_the_step():
    temperature = Temperature(0.07, clamp=(0.01, 0.5))
    for raw, expected in ((math.log(500.0), 0.01), (math.log(1.5), 0.5), (math.log(20.0), 0.05)):
        temperature.logit_scale.data.fill_(raw)
        temperature.after_step(Progress(), {})
        assert math.isclose(float(temperature.value), expected, rel_tol=1e-6)
    with pytest.raises(HilumError):
        Temperature(0.0)
    with pytest.raises(HilumError):
        Temperature(2.0, clamp=(0.01, 1.0))
