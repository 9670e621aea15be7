"""Muon against torch's own (in bfloat16) and against a singular value decomposition."""

from __future__ import annotations

import pytest
import torch

from examples.tiny_models.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (16, 16)])
def test_orthogonalised_matrix_has_the_same_frame_and_singular_values_near_one(
    shape: tuple[int, int],
) -> None:
    matrix = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inner = left.mT @ orthogonalise(matrix) @ right.mT  # diagonal in the matrix's own frame
    diagonal = inner.diagonal(dim1=-2, dim2=-1)
    assert torch.allclose(inner, torch.diag_embed(diagonal), atol=1e-4)
    assert diagonal.max() < 1.3
    assert diagonal[..., : shape[0] // 4 or 1].min() > 0.5


def test_follows_torchs_muon_within_its_bfloat16() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(24, 8), (24, 8), (8, 8), (8, 16)]
    ours = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    a = Muon(ours, lr=0.02, momentum=0.9, weight_decay=0.05)
    b = torch.optim.Muon(theirs, lr=0.02, momentum=0.9, weight_decay=0.05)
    for _ in range(4):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        assert (p - q).norm() < 0.01 * 4 * 0.02 * p.numel() ** 0.5  # 1 % of the distance moved


def test_refuses_vectors() -> None:
    with pytest.raises(ValueError, match="matrices"):
        Muon([torch.nn.Parameter(torch.zeros(3))])
