"""The same operator on CUDA, and the Triton kernel that may serve it.

Without a GPU the kernel runs in Triton's interpreter.
"""

import os
import subprocess
import sys

import pytest
import torch

from adapters.bank.bank import build_bank
from adapters.bank.token_gating import Gating, prepare_sharing
from adapters.expert import LowRank
from adapters.low_rank import make_canonical

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

INTERPRETED = """
import torch
from loadtest.commands.scale_expand import scale_expand_
g = torch.Generator().manual_seed(0)
for tokens, rows, out in ((1, 8, 64), (5, 48, 100), (33, 17, 130)):
    wide = torch.randn(tokens, out + 7, generator=g)
    y = wide[:, 3 : 3 + out]
    h = torch.randn(tokens, rows, generator=g)
    c = torch.randn(tokens, rows, generator=g)
    b = torch.randn(rows, out, generator=g)
    want, before = y + (h * c) @ b, wide.clone()
    scale_expand_(y, h, c, b)
    torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-4)
    assert torch.equal(wide[:, :3], before[:, :3])
    assert torch.equal(wide[:, 3 + out :], before[:, 3 + out :])
print("as it should")
"""


def test_the_kernel_computes_the_formula_and_writes_nowhere_else() -> None:
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "as it should\n", done.stderr


@CUDA
def test_the_operator_replayed_from_a_graph_follows_the_table() -> None:
    """What a captured step reads, the coefficients, may change between replays."""
    g = torch.Generator().manual_seed(0)
    factor = LowRank(torch.randn(8, 64, generator=g).cuda(), torch.randn(32, 8, generator=g).cuda())
    bank = build_bank([[factor]], [32])
    assert bank is not None
    x, y, rows = torch.randn(4, 64).cuda(), torch.zeros(4, 32).cuda(), torch.ones(4, 8).cuda()
    bank.add_(y.clone(), x, rows)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = bank.add_(y.clone(), x, rows)
    for scale in (1.0, -0.5, 0.0):
        rows.fill_(scale)
        graph.replay()
        torch.testing.assert_close(
            out, scale * (x @ factor.a.t() @ factor.b.t()), rtol=1e-3, atol=1e-3
        )


@CUDA
def test_shares_replayed_from_a_graph_follow_inputs_candidates_and_gatings() -> None:
    g = torch.Generator().manual_seed(0)
    draws = [
        (torch.randn(r, 64, generator=g).cuda(), torch.randn(32, r, generator=g).cuda())
        for r in (8, 3, 5)
    ]
    bank = build_bank([[make_canonical(LowRank(*draw)) for draw in draws]], [32])
    assert bank is not None
    x, y, rows = torch.randn(4, 64).cuda(), torch.zeros(4, 32).cuda(), torch.ones(4, 16).cuda()
    gatings = torch.tensor([Gating("arrow", 2, 1.0).numbers] * 4).cuda()

    def added() -> torch.Tensor:
        return bank.add_(y.clone(), x, prepare_sharing(rows, gatings, bank.blocks))

    added()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = added()
    for gating in (Gating("spectr", 1), Gating("arrow", 3, 0.5)):
        x.normal_()
        rows[:2, :8] = 0
        gatings[1:] = torch.tensor(gating.numbers).cuda()
        graph.replay()
        torch.testing.assert_close(out, added(), rtol=1e-4, atol=1e-4)


@CUDA
def test_every_way_of_the_benchmark_gives_the_same() -> None:
    from loadtest.commands.kernel import measure_cell

    for tokens, distinct in ((1, 1), (16, 1), (16, 16)):
        assert measure_cell(2048, 48, tokens, distinct)["triton_us"] > 0
