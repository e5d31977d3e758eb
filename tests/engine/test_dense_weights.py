"""Weights that are written in place: packed or plain, exact, and the base's again bit for bit."""

import pytest
import torch

from tta_serve.engine.worker.dense.mix_writer import MixedWeight, MixWriter
from tta_serve.engine.worker.dense.writable_weights import HeadProduct, PackedProduct, can_pack

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(32, 64), (48, 100), (7, 33), (576, 160)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_packed_weight_is_written_where_its_product_reads_it(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    if not can_pack(dtype):
        pytest.skip("this CPU has no products by packed weights of this dtype")
    g = torch.Generator().manual_seed(0)
    weight, other = (torch.randn(shape, generator=g).to(dtype) for _ in range(2))
    product, empty = PackedProduct(weight), torch.empty(0)
    order = product.find_order()
    assert order.bincount(minlength=weight.numel() + 1)[1:].eq(1).all()
    product.values.copy_(torch.cat([torch.zeros(1, dtype=dtype), other.view(-1)])[order])
    for rows in (1, 5, 64):
        x, bias = torch.randn(rows, shape[1]).to(dtype), torch.randn(shape[0]).to(dtype)
        wanted = torch.nn.functional.linear(x, other, bias)
        torch.testing.assert_close(product(x, empty, bias), wanted, rtol=2e-2, atol=2e-2)
        strided = torch.randn(rows, 2 * shape[1]).to(dtype)[:, ::2]
        wanted = torch.nn.functional.linear(strided, other)
        torch.testing.assert_close(product(strided, empty, None), wanted, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_head_follows_its_weight_while_that_is_not_the_bases(dtype: torch.dtype) -> None:
    if not can_pack(dtype):
        pytest.skip("this CPU has no products by packed weights of this dtype")
    base, other, x = (torch.randn(shape).to(dtype) for shape in ((96, 32), (96, 32), (5, 32)))
    weight, product = base.clone(), HeadProduct()
    before = product(x, weight, None)
    torch.testing.assert_close(before, torch.nn.functional.linear(x, base), rtol=2e-2, atol=2e-2)
    product.is_clean = False
    weight.copy_(other)
    wanted = torch.nn.functional.linear(x, other)
    torch.testing.assert_close(product(x, weight, None), wanted, rtol=2e-2, atol=2e-2)
    weight.copy_(base)
    product.is_clean = True
    assert torch.equal(product(x, weight, None), before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 1000, (1 << 18) + 17])
def test_a_mix_is_rounded_once_and_the_base_is_a_copy(count: int, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(1)
    clean = torch.randn(count, generator=g).to(dtype)
    deltas = [torch.randn(count, generator=g).to(d) for d in (torch.float32, torch.bfloat16, dtype)]
    parts = list(zip((0.7, -1.3, 0.05), deltas, strict=True))
    writer, values = MixWriter(torch.device("cpu")), torch.full((count,), torch.nan, dtype=dtype)
    writer.write([MixedWeight(values, clean, parts)])
    wanted = clean.float()
    for coefficient, delta in parts:
        wanted = wanted + coefficient * delta.float()
    torch.testing.assert_close(values, wanted.to(dtype))
    other = torch.full_like(values, torch.nan)
    writer._write_chunks(MixedWeight(other, clean, parts))
    torch.testing.assert_close(other, values)
    writer.write([MixedWeight(values, clean, [])])
    assert torch.equal(values, clean)
