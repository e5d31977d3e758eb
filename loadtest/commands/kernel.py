"""`python -m loadtest kernel`: one layer's delta on a GPU, ours against vLLM's own kernels.

The last line of stdout is one JSON object.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from loadtest.common.console import progress

WIDTHS = (2048, 4096, 8192)
RANKS = (48, 128, 512)
TOKENS = (1, 16, 64, 256, 2048)
EXPERT_RANK = 8
MOST_ADAPTERS = 256  # of vLLM's own: each is as large as our whole bank

_WAYS = ("vllm", "torch", "triton")


def command(
    width: Annotated[
        list[int] | None, typer.Option(help="Inputs and outputs of the layer; can be repeated.")
    ] = None,
    rank: Annotated[
        list[int] | None, typer.Option(help="Sum of all experts' ranks; can be repeated.")
    ] = None,
    tokens: Annotated[
        list[int] | None, typer.Option(help="Tokens in a step; can be repeated.")
    ] = None,
) -> None:
    """Compare vLLM's shrink and expand with our bank, in plain torch and with a Triton kernel.

    Microseconds, medians.
    """
    if not torch.cuda.is_available():
        progress.print("no CUDA device here: this command needs one")
        raise typer.Exit(2)
    rows = []
    for d, r, t in product(width or WIDTHS, rank or RANKS, tokens or TOKENS):
        for distinct in dict.fromkeys((1, min(t, MOST_ADAPTERS))):
            rows.append(measure_cell(d, r, t, distinct))
            progress.log(rows[-1])
    _show(rows)
    print(
        json.dumps(
            {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}
        ),
        flush=True,
    )


def measure_cell(d: int, rank: int, tokens: int, distinct: int) -> dict[str, Any]:
    """Measure one layer of d inputs and d outputs in bfloat16, with experts of rank 8.

    vLLM's way has an adapter of the whole rank for each mix, ours one bank and a row of
    coefficients for each.

    Args:
        d: Inputs, and outputs.
        rank: The sum of all experts' ranks.
        tokens: In a step.
        distinct: How many mixes they use.
    """
    from triton.testing import do_bench

    ways = _ways(d, rank, tokens, distinct)
    found = {way: run() for way, run in ways.items()}
    for way in ("triton", "vllm"):
        torch.testing.assert_close(found[way], found["torch"], rtol=0.05, atol=0.05)
    us = {f"{way}_us": round(1e3 * do_bench(run, quantiles=[0.5]), 2) for way, run in ways.items()}
    best = min(us["torch_us"], us["triton_us"])
    return {
        "d": d,
        "rank": rank,
        "tokens": tokens,
        "distinct": distinct,
        **us,
        "vllm_over_best": round(us["vllm_us"] / best, 3),
    }


def _ways(d: int, rank: int, tokens: int, distinct: int) -> dict[str, Callable[[], torch.Tensor]]:
    from vllm.lora.ops.triton_ops import LoRAKernelMeta, lora_expand, lora_shrink

    from adapters.bank.bank import Bank
    from loadtest.commands.scale_expand import scale_expand_

    g = torch.Generator("cuda").manual_seed(0)
    x, a, b, y = (_random(g, *shape) for shape in ((tokens, d), (rank, d), (rank, d), (tokens, d)))
    a, b = a / d**0.5, b / rank**0.5
    slots = torch.arange(tokens, device="cuda") % distinct
    table = torch.rand(distinct, rank // EXPERT_RANK, device="cuda", generator=g).repeat_interleave(
        EXPERT_RANK, 1
    )
    rows = table[slots]
    bank = Bank(a, (b,), (rank,), (d,), tuple(k // EXPERT_RANK for k in range(rank)))

    meta = LoRAKernelMeta.make(distinct, tokens, "cuda")
    meta.prepare_tensors(slots)
    their_a = a.repeat(distinct, 1, 1)
    their_b = (table[:, None, :].to(b.dtype) * b.t()).contiguous()  # [distinct, d, rank]
    shrunk = torch.empty(1, tokens, rank, dtype=torch.float32, device="cuda")

    def theirs() -> torch.Tensor:
        out = y.clone()
        lora_shrink(x, [their_a], shrunk, *meta.meta_args(tokens, False), 1.0)
        lora_expand(
            shrunk, [their_b], out, *meta.meta_args(tokens, False), offset_start=0, add_inputs=True
        )
        return out

    def plain() -> torch.Tensor:
        return bank.add_(y.clone(), x, rows)

    def fused() -> torch.Tensor:
        return scale_expand_(y.clone(), torch.nn.functional.linear(x, a), rows, b)

    return dict(zip(_WAYS, (theirs, plain, fused), strict=True))


def _random(g: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", generator=g).to(torch.bfloat16)


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table(*rows[0], title="One layer's delta, microseconds")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
