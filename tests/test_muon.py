"""Muon: steps of singular values near one for matrices and filters, AdamW's for the rest."""

import pytest
import torch

from memsub_extra.training.muon import RATIO, Muon, orthogonalized


@pytest.mark.parametrize("shape", [(2, 8, 8), (3, 4, 20), (1, 20, 4)])
def test_singular_values_come_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalized(matrices))
    assert values.shape == torch.linalg.svdvals(matrices).shape
    assert (values > 0.6).all() and (values < 1.3).all()


def test_a_step_is_as_long_for_a_small_gradient_as_for_a_large_one():
    lengths = []
    for scale in (1e-3, 1e3):
        weight = torch.nn.Parameter(torch.zeros(6, 2, 3))
        weight.grad = scale * torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(1))
        Muon([weight], lr=0.01, weight_decay=0.0).step()
        lengths.append(torch.linalg.matrix_norm(weight.detach().flatten(1), 2).item())
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-3)
    assert lengths[0] == pytest.approx(0.01 * RATIO, rel=0.3)


def test_what_is_no_matrix_is_adamws():
    bias, twin = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    matrix = torch.nn.Parameter(torch.ones(5, 5))
    for p in (bias, twin, matrix):
        p.grad = torch.full_like(p, 0.3)
    Muon([bias, matrix], lr=0.01, weight_decay=0.01).step()
    torch.optim.AdamW([twin], 0.01, (0.9, 0.99), weight_decay=0.01).step()
    torch.testing.assert_close(bias, twin)
    assert (matrix != 1).all()
