"""table.py: 8-bit embeddings and heads, their kernel on every instruction set, their way through a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

import arbllm_kernels as arb
from arbllm_kernels import native
from arbllm_kernels.errors import FormatError, InputError
from arbllm_kernels.header import Header
from arbllm_kernels.inspect import inspect
from arbllm_kernels.pipeline import quantize_checkpoint
from arbllm_kernels.table import TABLE_LINEAR, RoundedEmbedding, RoundedHead, round_embeddings, round_rows

ISAS = [name for name, usable in native.available_isas().items() if usable]
RANDOM = torch.Generator().manual_seed(0)


def table(n: int, m: int) -> tuple[torch.Tensor, torch.Tensor]:
    return round_rows(torch.randn(n, m, generator=RANDOM))


def test_codes_are_the_nearest_and_zero_rows_stay_zero() -> None:
    weight = torch.randn(50, 33, generator=RANDOM)
    weight[7] = 0
    codes, scale = round_rows(weight)
    assert codes.dtype == torch.int8 and scale.dtype == torch.float16 and int(codes.abs().max()) <= 127
    back = codes.float() * scale.float()[:, None]
    assert bool((back[7] == 0).all())
    # half a step, and for the largest weight of a row what the rounding of the scale itself cuts off
    assert bool(((weight - back).abs() <= (0.5 + 127 * 2**-10) * scale.float()[:, None]).all())
    assert float((weight - back).norm() / weight.norm()) < 0.01


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9])
def test_values_that_cannot_be_rounded_are_refused(value: float) -> None:
    weight = torch.ones(2, 2)
    weight[1, 1] = value
    with pytest.raises(InputError, match=r"table \[2, 2\] holds NaN, Inf or values beyond"):
        round_rows(weight)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 15), (5, 16), (7, 63), (9, 64), (11, 65), (130, 576)])
@pytest.mark.parametrize("batch", [0, 1, 3, 4, 5, 16])
def test_every_instruction_set_multiplies_by_the_table(isa: str, n: int, m: int, batch: int) -> None:
    codes, scale = table(n, m)
    x = torch.randn(batch, m, generator=RANDOM)
    expected = x.double() @ (codes.double() * scale.double()[:, None]).T
    with native.forced_isa(isa):
        y = TABLE_LINEAR(x, codes, scale)
    assert y.dtype == torch.float32 and tuple(y.shape) == (batch, n)
    size = x.double().abs() @ (codes.double() * scale.double()[:, None]).abs().T
    assert bool(((y - expected).abs() <= 1e-6 * size).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_modules_compute_what_their_dense_weight_says(dtype: torch.dtype) -> None:
    codes, scale = table(20, 12)
    embedding, head = RoundedEmbedding(codes, scale).to(dtype), RoundedHead(codes, scale, torch.ones(20)).to(dtype)
    ids = torch.tensor([[3, 19], [0, 3]])
    assert torch.equal(embedding(ids), nn.functional.embedding(ids, embedding.weight))
    x = torch.randn(2, 3, 12, generator=RANDOM).to(dtype)
    close = {"rtol": 2e-2, "atol": 2e-2} if dtype != torch.float32 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(head(x), nn.functional.linear(x, head.weight, head.bias), **close)
    assert head(x).dtype == embedding(ids).dtype == dtype and head.codes.dtype == torch.int8


def test_the_op_keeps_the_contract_of_torch() -> None:
    codes, scale = table(6, 10)
    for batch in (2, 20):
        x = torch.randn(batch, 10, requires_grad=True)
        torch.library.opcheck(torch.ops.arb.table_linear, (x, codes, scale))
        x.grad = None
        TABLE_LINEAR(x, codes, scale).sum().backward()
        expected = torch.ones(batch, 6) @ (codes.float() * scale.float()[:, None])
        torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-4)


def test_a_wrong_width_is_refused() -> None:
    codes, scale = table(6, 10)
    with pytest.raises(InputError, match=r"8-bit table \[6, 10\] times \[2, 20\]: the last dimension must be 10"):
        RoundedHead(codes, scale)(torch.randn(2, 20))
    with pytest.raises(InputError, match="must be int8"):
        RoundedHead(codes.int(), scale)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_rounded_model_survives_its_file(tmp_path: Path, tied: bool, dtype: torch.dtype | None) -> None:
    model = tiny.pack_linears(tiny.llama(tied=tied))
    before = model(torch.arange(8)[None]).logits
    errors = round_embeddings(model)
    assert set(errors) == {"model.embed_tokens", "lm_head"} and all(0 < e < 0.01 for e in errors.values())
    after = model(torch.arange(8)[None]).logits
    assert 0 < float((after - before).norm() / before.norm()) < 0.05
    path = tmp_path / "m.arb"
    arb.save(model, path)
    arb.verify(path)
    stored = 128 * 64 * (1 if tied else 2)
    assert inspect(path).embeddings == stored + stored // 64 * 4
    back, _ = arb.load(path, dtype=dtype)
    assert (back.lm_head.codes.data_ptr() == back.model.embed_tokens.codes.data_ptr()) == tied
    close = {"rtol": 0.1, "atol": 0.1} if dtype is torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(back(torch.arange(8)[None]).logits.float(), after, **close)
    assert back.lm_head.scale.dtype == (dtype or torch.float32)
    again = tmp_path / "again.arb"
    arb.save(arb.load(path)[0], again)
    assert again.read_bytes() == path.read_bytes()


def test_rounding_twice_or_without_embeddings_changes_nothing() -> None:
    model = tiny.llama()
    round_embeddings(model)
    assert round_embeddings(model) == {} and round_embeddings(nn.Linear(2, 2)) == {}


def test_the_pipeline_stores_embeddings_in_8_bits(tmp_path: Path) -> None:
    source = tmp_path / "dense"
    tiny.llama().save_pretrained(source)
    ids = torch.randint(0, 128, (2, 16), generator=RANDOM)
    cfg = arb.QuantConfig(block_size=32, iters=2)
    sizes = {}
    for kind in ("auto", "int8"):
        out = tmp_path / f"{kind}.arb"
        summary = quantize_checkpoint(source, out, cfg, ids, embed_dtype=kind, progress=False)
        sizes[kind] = inspect(out).embeddings
    assert sizes["int8"] < 0.55 * sizes["auto"]
    assert any("In 8 bits: model.embed_tokens (relative error 0." in note for note in summary.notes)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (["model.norm"], "8-bit table model.norm: the model has LlamaRMSNorm there"),
        (["nowhere"], "8-bit table nowhere: the model has NoneType there"),
        ([""], "8-bit table : the model has LlamaForCausalLM there"),
        (["model.layers.0.mlp.up_proj"], "as an 8-bit table and as something else"),
        ([3], "must hold names"),
        (["lm_head"], "tensor lm_head.codes is missing"),
    ],
)
def test_hostile_tables_are_refused(tmp_path: Path, tables: list[object], message: str) -> None:
    model = tiny.pack_linears(tiny.llama())
    path = tmp_path / "m.arb"
    arb.save(model, path)
    from arbllm_kernels import archive

    opened = archive.read(path)
    values = {**opened.header.to_dict(), "tables": tables}
    with pytest.raises(FormatError, match=message):
        header = Header.from_dict(json.loads(json.dumps(values)))
        archive.write(path, opened.tensors(), header)
        arb.load(path)
