"""The bank of one-bit experts for the CPU gives what plain torch gives."""

import os
import subprocess
import sys

import pytest
import torch

from adapters.bank.sign_bank import SignBank, Signs, pack_signs, unpack_signs
from tta_serve.engine.worker.cpu.lookup_bank import LookupBank, pack_for_lookup
from tta_serve.engine.worker.cpu.sparse_bank import ExpertUses

OUTS, COLUMNS = (60, 7, 300), (4, 0, 2)


def some_signs(inputs: int) -> list[list[torch.Tensor | None]]:
    g = torch.Generator().manual_seed(inputs)
    made = [[torch.rand(out, inputs, generator=g) < 0.5 for _ in COLUMNS] for out in OUTS]
    return [[made[0][0], None, made[0][2]], [None, None, None], [made[2][0], made[2][1], None]]


def some_coefficients(tokens: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(tokens)
    return torch.randn(tokens, 6, generator=g) * (torch.rand(tokens, 6, generator=g) < 0.5)


@pytest.mark.parametrize("tokens", [1, 3, 16, 17, 65, 200])
@pytest.mark.parametrize("inputs", [50, 64, 131])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_token_gets_its_experts_signed_sums(tokens: int, inputs: int, threads: int) -> None:
    signs = some_signs(inputs)
    x, y, table = torch.randn(tokens, inputs), torch.randn(tokens, 367), some_coefficients(tokens)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        packed = [
            [None if s is None else Signs(pack_for_lookup(s), 0.1 + k) for k, s in enumerate(part)]
            for part in signs
        ]
        bank = LookupBank(packed, OUTS, inputs, COLUMNS)
        got = bank.add_(y.clone(), x, ExpertUses(table, 0, threads))
    finally:
        torch.set_num_threads(before)

    wanted = y.double()
    for k, column in enumerate(COLUMNS):
        for outputs, weight in zip(wanted.split(OUTS, 1), signs, strict=True):
            if (plus := weight[k]) is not None:
                delta = (0.1 + k) * (plus.double() * 2 - 1)
                outputs.add_(table[:, column : column + 1] * (x.double() @ delta.t()))
    torch.testing.assert_close(got, wanted.float(), rtol=1e-5, atol=1e-4)

    plain = tuple(
        tuple(None if s is None else Signs(pack_signs(s), 0.1 + k) for k, s in enumerate(part))
        for part in signs
    )
    dense = SignBank(plain, OUTS, COLUMNS).add_(y.clone(), x, table[:, COLUMNS])
    torch.testing.assert_close(dense, wanted.float(), rtol=1e-5, atol=1e-4)


def test_signs_are_packed_eight_to_a_byte() -> None:
    plus = torch.rand(5, 13) < 0.5
    bits = pack_signs(plus)
    assert bits.shape == (5, 2)
    assert unpack_signs(bits, 13, torch.float32).equal(plus.float() * 2 - 1)


_IN_INTERPRETER = """
import torch
from adapters.bank.sign_bank import pack_signs
from loadtest.commands.sign_expand import sign_expand_

for tokens, inputs, out in ((3, 50, 70), (17, 128, 64), (1, 200, 9)):
    plus, x = torch.rand(out, inputs) < 0.5, torch.randn(tokens, inputs)
    y, c = torch.randn(tokens, out), torch.randn(tokens)
    wanted = y + c[:, None] * (x @ (plus.float() * 2 - 1).t())
    got = sign_expand_(y.clone(), x, c, pack_signs(plus))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
"""


def test_the_kernel_for_gpus_gives_the_same_in_tritons_interpreter() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", _IN_INTERPRETER], check=True, env=environment)
