"""The native core: bit packing, dispatch, and every instruction set against packed.py on awkward shapes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import element, native_weight, random_packed
from hypothesis import given, settings
from hypothesis import strategies as st

from arbllm_kernels import cpu, native, ops, packed
from arbllm_kernels.config import GROUPS
from arbllm_kernels.errors import InputError
from arbllm_kernels.packed import PackedWeight

ROOT = Path(__file__).resolve().parent.parent
SHAPES = [(1, 1, 1), (3, 200, 128), (5, 100, 33), (2, 64, 128), (7, 300, 256), (5, 130, 1), (4, 250, 100)]
ZONES = [(1, 1), (2, 1), (2, 2), (4, 1), (4, 4)]
PARTS = [(False, True), (True, False), (False, False), (True, True)]  # (mean, col_scale)
FP32, EXACT = native.extension.Element.fp32, native.extension.Activations.exact


def run_gemm(pw: PackedWeight, x: torch.Tensor, threads: int = 1) -> tuple[torch.Tensor, str]:
    y = torch.full((x.shape[0], pw.layout.rows), float("nan"))
    args = ops.packed_args(pw)
    ran = native_weight(args).gemm(x.data_ptr(), FP32, x.shape[0], y.data_ptr(), threads, EXACT)
    return y, ran


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_element_of_16_bits_is_read_and_rounded(isa: str, dtype: torch.dtype) -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    x = torch.stack([bits.view(dtype), torch.zeros(2**16, dtype=dtype)], 1)
    # By blending, one column and one of zeros: y is x times w, rounded once. So many bits that there are ties; up to
    # Inf; subnormal.
    for w in (1.0, 1 + 2.0**-10, 3.0, 2.0**-10 + 2.0**-20):
        pw = random_packed(1, 2, 1, salient=0.0)
        pw.sign.fill_(1), pw.row_scale.fill_(w), pw.col_scale.fill_(1.0)
        assert float(pw.dequantize()[0, 0]) == w
        y, weight = torch.empty(2**16, 1, dtype=dtype), native_weight(ops.packed_args(pw))
        weight.gemm(x.data_ptr(), element(dtype), 2**16, y.data_ptr(), 2, EXACT)
        expected = (x[:, :1].float() * w + 0.0).to(dtype)  # a sum: never -0, unless rounded to it
        assert torch.equal(y.isnan(), expected.isnan())
        number = ~expected.isnan()
        assert torch.equal(y[number].view(torch.int16), expected[number].view(torch.int16)), w


def run_dequantize(
    pw: PackedWeight, begin: int, end: int, stored: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, str]:
    out = torch.full((end - begin, pw.layout.cols), float("nan"), dtype=dtype)
    packed = cpu.view(ops.packed_args(pw))
    ran = native.extension.dequantize(packed, begin, end, stored, element(dtype), out.data_ptr(), 2)
    return out, ran


def tolerance(pw: PackedWeight, x: torch.Tensor) -> torch.Tensor:
    """Rounding bound of a float32 sum of all products, [batch, n].

    A weight is the sum of up to three parts (planes, mean), each multiplied and added on its own: every partial result
    is off by at most (terms + 4) half-ulps of the sum of all magnitudes, where the magnitude of a weight is that of its
    parts. With scales <= 1.5 and column scales <= 1.5 the parts add up to at most 2 * 2.25 + 0.5 = 5.
    """
    terms = 3 * pw.layout.cols + 4
    size = 5.0 * 2.0**pw.layout.exponent * x.double().abs().sum(1, keepdim=True)
    return (terms * 2.0**-24 * size).expand(-1, pw.layout.rows) + 1e-44


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3), st.integers(0, 200), st.integers(0, 2**32))
def test_pack_bits_round_trip_and_equality_with_packed(rows: int, length: int, seed: int) -> None:
    bits = torch.rand(rows, length, generator=torch.Generator().manual_seed(seed)) > 0.5
    words = native.pack_bits(bits)
    assert torch.equal(words, packed.pack_bits(bits))
    assert torch.equal(native.unpack_bits(words, length), bits)
    assert torch.equal(native.unpack_bits(words, length), packed.unpack_bits(words, length))


def test_pack_bits_refuses_other_dtypes_and_lengths() -> None:
    with pytest.raises(InputError, match=r"pack_bits: torch\.uint8"):
        native.pack_bits(torch.zeros(3, dtype=torch.uint8))
    with pytest.raises(InputError, match="2 words per row do not hold 65 bits"):
        native.unpack_bits(torch.zeros(2, dtype=torch.int32), 65)


@pytest.mark.parametrize("n,m,k", SHAPES)
def test_dequantize_is_bit_for_bit_packed_dequantize(isa: str, n: int, m: int, k: int) -> None:
    for groups, salient_groups in ZONES:
        for order in (1, 2):
            for mean, col in PARTS:
                dtype = torch.float32 if groups == 2 and order == 2 else torch.float16
                pw = random_packed(
                    n, m, k, groups=groups, salient_groups=salient_groups, salient_order=order, mean=mean,
                    col_scale=col, dtype=dtype, exponent=-3,
                )  # fmt: skip
                expected = pw.dequantize()
                got, ran = run_dequantize(pw, 0, n)
                assert ran == isa
                assert torch.equal(got.view(torch.int32), expected.view(torch.int32)), pw.layout
                part, _ = run_dequantize(pw, n // 2, n, stored=True)
                assert torch.equal(part, expected[n // 2 :, pw.order.long()])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dequantize_to_16_bits_rounds_to_the_nearest(isa: str, dtype: torch.dtype) -> None:
    for n, m, k in SHAPES:
        pw = random_packed(n, m, k, mean=True, exponent=-3)
        expected = pw.dequantize().to(dtype)
        for stored, columns in ((False, slice(None)), (True, pw.order.long())):
            got, ran = run_dequantize(pw, n // 2, n, stored, dtype)
            assert ran == isa and torch.equal(got, expected[n // 2 :, columns])


@pytest.mark.parametrize("n,m,k", SHAPES)
def test_gemm_equals_float64(isa: str, n: int, m: int, k: int) -> None:
    for groups, salient_groups in ZONES:
        for order in (1, 2):
            for mean, col in PARTS:
                pw = random_packed(
                    n, m, k, groups=groups, salient_groups=salient_groups, salient_order=order, mean=mean,
                    col_scale=col, exponent=-3,
                )  # fmt: skip
                check_gemm(pw, isa, (1, 3))


def check_gemm(pw: PackedWeight, isa: str, batches: tuple[int, ...], largest: float = 1.0) -> None:
    """The product against float64; `largest`: how much larger than 1.5 a row scale may be."""
    for batch in batches:
        x = torch.randn(batch, pw.layout.cols)
        got, ran = run_gemm(pw, x)
        assert ran == isa
        error = (got.double() - x.double() @ pw.dequantize().double().T).abs()
        assert bool((error <= largest * tolerance(pw, x)).all()), (pw.layout, batch)


@pytest.mark.parametrize("n,m,k", [*SHAPES, (70, 1300, 100)])
def test_format_2(isa: str, n: int, m: int, k: int) -> None:
    """Shared column scales, 8-bit row scales, explicit order: dequantized bit for bit, multiplied within rounding."""
    for groups, salient_groups in ZONES:
        for order in (1, 2):
            for new in ({"shared": True}, {"coded": True}, {"shared": True, "coded": True, "ordered": True}):
                dtype = torch.float32 if groups == 2 else torch.float16
                options: dict[str, Any] = {**new, "dtype": dtype, "exponent": -3, "salient_order": order}
                pw = random_packed(n, m, k, groups=groups, salient_groups=salient_groups, **options)
                got, ran = run_dequantize(pw, 0, n)
                assert ran == isa
                expected = pw.dequantize()
                assert torch.equal(got.view(torch.int32), expected.view(torch.int32)), pw.layout
                assert torch.equal(run_dequantize(pw, 0, n, stored=True)[0], expected[:, pw.order.long()])
                check_gemm(pw, isa, (1, 3), largest=127.0 if "coded" in new else 1.0)


def test_format_2_parts_that_do_not_fit_are_refused() -> None:
    pw = random_packed(5, 128, 64, shared=True, coded=True)
    args, sizes = list(ops.packed_args(pw)), ops.layout_sizes(pw.layout)
    x, y = torch.randn(1, 128), torch.empty(1, 5)

    def gemm_with(position: int, part: Any) -> None:
        changed = (*args[:position], part, *args[position + 1 :])
        native_weight(changed).gemm(x.data_ptr(), FP32, 1, y.data_ptr(), 1, EXACT)

    for position in (3, 4, 6):
        with pytest.raises(InputError, match="does not have the size"):
            gemm_with(position, args[position].reshape(-1)[:-1])
    with pytest.raises(InputError, match=r"row_scale is torch\.uint8 .* must be contiguous float16 or float32"):
        gemm_with(4, None)
    with pytest.raises(InputError, match="does not have the size"):
        gemm_with(7, torch.ones(2, pw.salient_columns, dtype=torch.float16))
    with pytest.raises(InputError, match="layout is out of range"):
        gemm_with(5, torch.ones(5, 2, 4, dtype=torch.float16))
    with pytest.raises(InputError, match="layout is out of range"):
        gemm_with(6, None)
    with pytest.raises(InputError, match="layout is out of range"):
        gemm_with(10, [*sizes[:7], 2])


@pytest.mark.parametrize("n,m,k", [(70, 1300, 100), (33, 1100, 128), (3, 2000, 1001)])
def test_gemm_over_several_words(isa: str, n: int, m: int, k: int) -> None:
    """Blocks that begin inside words, rows that end inside them."""
    for salient_groups, order, dtype in ((2, 2, torch.float16), (1, 2, torch.float32), (1, 1, torch.float16)):
        pw = random_packed(n, m, k, salient_groups=salient_groups, salient_order=order, dtype=dtype, exponent=-3)
        x = torch.randn(5, m)
        got, ran = run_gemm(pw, x)
        assert ran == isa
        error = (got.double() - x.double() @ pw.dequantize().double().T).abs()
        assert bool((error <= tolerance(pw, x)).all()), pw.layout


@pytest.mark.parametrize("batch", [0, 1, 2, 3, 8, 9, 33])
def test_gemm_rows_do_not_depend_on_batch_or_threads(isa: str, batch: int) -> None:
    pw = random_packed(33, 300, 128)
    x = torch.randn(batch, 300)
    together, _ = run_gemm(pw, x, threads=3)
    for i in range(batch):
        alone, _ = run_gemm(pw, x[i : i + 1])
        assert torch.equal(together[i : i + 1], alone)


def test_threads_share_the_rows_of_a_large_matrix(isa: str) -> None:
    pw = random_packed(1501, 1400, 128)  # large enough that two threads really run
    x = torch.randn(2, 1400)
    assert torch.equal(run_gemm(pw, x, threads=1)[0], run_gemm(pw, x, threads=3)[0])
    assert torch.equal(run_dequantize(pw, 0, 1501)[0], pw.dequantize())


@pytest.mark.parametrize("salient", [0.0, 1.0])
@pytest.mark.parametrize("exponent", [-126, -20, 0, 120])
def test_no_or_only_salient_columns_and_extreme_exponents(isa: str, salient: float, exponent: int) -> None:
    pw = random_packed(3, 200, 64, salient=salient, exponent=exponent)
    assert pw.salient_columns == round(salient * 200)
    assert torch.equal(run_dequantize(pw, 0, 3)[0], pw.dequantize())
    x = torch.randn(2, 200)
    error = (run_gemm(pw, x)[0].double() - x.double() @ pw.dequantize().double().T).abs()
    assert bool((error <= tolerance(pw, x) + 600 * 2.0**-149).all())  # subnormal products lose up to half a unit each


def test_all_zero_scales_give_zero(isa: str) -> None:
    pw = random_packed(3, 200, zero=True, mean=True)
    y, _ = run_gemm(pw, torch.randn(1, 200))
    assert bool((y == 0).all())


def test_every_half_precision_scale_is_read_exactly(isa: str) -> None:
    """All finite fp16 values, subnormal ones included, as row scales of single-column blocks."""
    halves = torch.arange(0x7C00, dtype=torch.int32).to(torch.int16).view(torch.float16)
    pw = random_packed(halves.numel(), 1, 1, groups=1, salient=0.0, salient_order=1, col_scale=False)
    pw.row_scale[:, 0, 1] = halves
    assert torch.equal(run_dequantize(pw, 0, halves.numel())[0].abs().squeeze(1), halves.float())


def test_hostile_contents_are_refused_or_harmless() -> None:
    pw = random_packed(5, 100, 33)
    args = list(ops.packed_args(pw))
    x, y = torch.randn(1, 100), torch.empty(1, 5)

    def gemm_with(position: int, part: Any) -> None:
        changed = [*args[:position], part, *args[position + 1 :]]
        native_weight(tuple(changed)).gemm(x.data_ptr(), FP32, 1, y.data_ptr(), 1, EXACT)

    for position in (0, 1, 2, 3, 6, 7):
        with pytest.raises(InputError, match=r"does not have the size .*n = 5, m = 100, k = 33"):
            gemm_with(position, args[position].reshape(-1)[:-1])
        if args[position].dtype == torch.int32:
            gemm_with(position, torch.full_like(args[position], -1))  # padding bits set: harmless
    with pytest.raises(InputError, match="names a column that does not exist"):
        gemm_with(8, args[8].clone().fill_(100))
    with pytest.raises(InputError, match="names a column that does not exist"):
        gemm_with(8, args[8].clone().fill_(-1))
    for bad in (-1, 34):
        with pytest.raises(InputError, match="salient counts do not fit"):
            gemm_with(9, args[9].clone().fill_(bad))
    with pytest.raises(InputError, match="layout is out of range"):
        gemm_with(10, [5, 100, 33, 3, 1, 2, 0, 0])
    with pytest.raises(InputError, match="row range"):
        run_dequantize(pw, 3, 6)


def test_constants_equal_the_format() -> None:
    assert native.extension.WORD == packed.WORD
    assert native.extension.MAX_DIM == packed.MAX_DIM
    assert max(GROUPS) == native.extension.MAX_GROUPS
    assert range(-native.extension.MAX_EXPONENT, native.extension.MAX_EXPONENT + 1) == packed.EXPONENT_RANGE
    packed.Layout.from_dict({**random_packed(1, 1, 1).layout.to_dict(), "block_size": native.extension.MAX_BLOCK})


def test_set_isa_refuses_unknown_names() -> None:
    with pytest.raises(InputError, match=r'set_isa\("sse9"\): unknown instruction set; usable here: .*scalar'):
        native.set_isa("sse9")


@pytest.mark.parametrize("name", ["scalar", "sse9"])
def test_forced_isa_in_the_environment(name: str) -> None:
    code = "from arbllm_kernels import native; print(native.active_isa())"
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "ARBLLM_FORCE_ISA": name}, capture_output=True, text=True
    )
    if name == "scalar":
        assert result.stdout.strip() == "scalar"
    else:
        assert "ARBLLM_FORCE_ISA=sse9: unknown instruction set; usable here:" in result.stderr


def test_forked_children_have_their_own_threads() -> None:
    pw = random_packed(1501, 1400, 128)
    x = torch.randn(1, 1400)
    expected, _ = run_gemm(pw, x, threads=2)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(run_gemm(pw, x, threads=2)[0], expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.slow
def test_neon_selftest_under_emulation(tmp_path: Path) -> None:
    """Cross-compiles the core for aarch64 and runs csrc/tests/selftest.cpp under qemu."""
    for tool in ("aarch64-linux-gnu-g++", "qemu-aarch64", "cmake", "ninja"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    configure = [
        "cmake", f"-S{ROOT}", f"-B{tmp_path}", "-GNinja", "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++", "-DCMAKE_BUILD_TYPE=None",
        "-DCMAKE_CXX_FLAGS=-O1", "-DCMAKE_EXE_LINKER_FLAGS=-static", "-DARB_PYTHON=OFF", "-DARB_TESTS=ON",
    ]  # fmt: skip
    subprocess.run(configure, check=True, capture_output=True)
    subprocess.run(["cmake", "--build", str(tmp_path)], check=True, capture_output=True)
    result = subprocess.run(["qemu-aarch64", str(tmp_path / "arb_selftest")], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert "ran neon\n" in result.stdout and "ran neondot\n" in result.stdout and "540 weights" in result.stdout


WITH_BYTES = ("avx2", "avxvnni", "avx512", "avx512vnni", "avx512vbmi")


@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="x86-64 units only")
@pytest.mark.parametrize(
    "unit",
    ["avx2/kernels", "avx512/kernels"] + [f"{isa}/{kind}" for isa in WITH_BYTES for kind in ("line", "tiles")],
)
def test_units_share_no_code(unit: str, tmp_path: Path) -> None:
    """A weak symbol in a unit could be linked into code for machines that lack its instruction set."""
    for tool in ("g++", "nm"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    flags = ["-mavx2", "-mfma", "-mf16c", "-mbmi2"]
    flags += ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"] if "avx512" in unit else []
    flags += ["-mavxvnni"] if "avxvnni" in unit else []
    flags += ["-mavx512vnni"] if "avx512vnni" in unit or "vbmi" in unit else []
    flags += ["-mavx512vbmi", "-mavx512vbmi2"] if "vbmi" in unit else []
    source, out = ROOT / "csrc/cpu" / f"{unit}.cpp", tmp_path / "unit.o"
    command = ["g++", "-std=c++20", "-O0", "-fPIC", f"-I{ROOT / 'csrc/include'}", *flags, "-c", source, "-o", out]
    subprocess.run([str(c) for c in command], check=True)
    listed = subprocess.run(["nm", "-C", "--defined-only", "--extern-only", str(out)], capture_output=True, text=True)
    symbols = [line.split(" ", 2)[2] for line in listed.stdout.splitlines()]
    symbols = [name for name in symbols if not name.startswith("DW.ref.")]  # an address, no code
    assert symbols == [f"arb::{unit.replace('/', '_')}"]
