from __future__ import annotations

import torch
from torch.nn import functional as F

from pyddfast.nn import KDLoss
from tests.ops.cases import logits
from tests.tolerances import FLOAT32, assert_close


def test_kd_loss_module():
    s, t = logits(4, 10, 1).float().requires_grad_(), logits(4, 10, 2).float()
    module = KDLoss(3.0, t_squared=True, keep_score=True)
    p, q = F.log_softmax(s.detach().double() / 3, -1), F.softmax(t.double() / 3, -1)
    loss = module(s, t)
    assert_close(loss, 9 * F.kl_div(p, q, reduction="batchmean"), FLOAT32)
    assert_close(module.last_score, (p.exp() - q).norm(dim=-1) / 3, FLOAT32)
    loss.backward()
    assert_close(s.grad, 9 * (p.exp() - q) / 3 / 4, FLOAT32)
    assert "temperature=3.0" in repr(module)


def test_options_reach_the_operator():
    s, q = logits(4, 10, 3).float(), torch.softmax(logits(4, 10, 4), -1).float()
    module = KDLoss(1.0, teacher_kind="probs", reduction="none")
    weight = torch.tensor([0.0, 1.0, 2.0, 3.0])
    rows = F.kl_div(F.log_softmax(s.double(), -1), q.double(), reduction="none").sum(-1)
    assert_close(module(s, q, weight), rows * weight, FLOAT32, absolute=1e-6)
    assert module.last_score is None
