"""What the CUDA kernels compile to, checked without a GPU: no spills, wide accesses, IEEE division, no fusion."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed (pip install 'btrain[gpu]')")

from btrain.kernels import triton_backend, triton_kernels  # noqa: E402

STACK = {"codes_ptr": "*i8", "scales_ptr": "*fp32", "terms_ptr": "*fp64"}
WARPS = triton_backend.QUANTIZE_WARPS
ROWS = triton_backend.QUANTIZE_ROWS


class Variant(NamedTuple):
    kernel: Any
    pointers: dict[str, str]
    constants: dict[str, Any]
    warps: int


def quantizer(dtype: str, *, stochastic: bool, even: bool = True) -> Variant:
    pointers = {"x_ptr": dtype, "codes_ptr": "*i8", "scales_ptr": "*fp32"}
    return Variant(triton_kernels.quantize, pointers, {"R": ROWS, "EVEN": even, "STOCHASTIC": stochastic}, WARPS)


VARIANTS = {
    "nearest fp32": quantizer("*fp32", stochastic=False),
    "nearest bf16": quantizer("*bf16", stochastic=False),
    "nearest fp16": quantizer("*fp16", stochastic=False),
    "nearest rest": quantizer("*fp32", stochastic=False, even=False),
    "stochastic fp32": quantizer("*fp32", stochastic=True),
    "dequantize": Variant(
        triton_kernels.dequantize,
        {"codes_ptr": "*i8", "scales_ptr": "*fp32", "out_ptr": "*fp32"},
        {"R": ROWS, "EVEN": True},
        WARPS,
    ),
    "gram": Variant(
        triton_kernels.gram_groups,
        STACK,
        {"T": triton_backend.GRAM_TILE, "CHUNK": triton_backend.GRAM_CHUNK},
        triton_backend.GRAM_WARPS,
    ),
    "sum": Variant(triton_kernels.sum_groups, {"terms_ptr": "*fp64", "out_ptr": "*fp64"}, {"W": 64}, 2),
    "weighted_sum": Variant(
        triton_kernels.weighted_sum, {"codes_ptr": "*i8", "weights_ptr": "*fp32", "out_ptr": "*fp32"}, {}, 2
    ),
    "sketch": Variant(triton_kernels.sketch_groups, STACK, {}, 4),
}


class Machine(NamedTuple):
    """What a kernel was compiled to."""

    ttir: str
    ptx: str
    sass: str
    resources: str


@pytest.fixture(
    scope="module", params=[pytest.param(80, id="sm_80", marks=pytest.mark.slow), pytest.param(90, id="sm_90")]
)
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Machine]:
    folder = tmp_path_factory.mktemp("cubin")
    return {
        name: compile_variant(v, request.param, folder / f"{i}.cubin") for i, (name, v) in enumerate(VARIANTS.items())
    }


def compile_variant(variant: Variant, architecture: int, cubin: Path) -> Machine:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(variant.kernel.arg_names)
    kinds = {n: variant.pointers.get(n, "constexpr" if n in variant.constants else "i64") for n in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if kinds[n].startswith("*")}
    source = ASTSource(fn=variant.kernel, signature=kinds, constexprs=variant.constants, attrs=aligned)
    options = {"num_warps": variant.warps, **triton_backend.EXACT}
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    cubin.write_bytes(made.asm["cubin"])
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    return Machine(
        ttir=str(made.asm["ttir"]),
        ptx=made.asm["ptx"],
        sass=read(tools / "nvdisasm", "-c", cubin),
        resources=read(tools / "cuobjdump", "-res-usage", cubin),
    )


def read(*command: object) -> str:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", VARIANTS)
def test_no_spills(compiled: dict[str, Machine], name: str) -> None:
    machine = compiled[name]
    assert not re.findall(r"\b(?:LDL|STL)\b", machine.sass)
    assert set(re.findall(r"(?:STACK|LOCAL):(\d+)", machine.resources)) == {"0"}


@pytest.mark.parametrize("name", VARIANTS)
def test_no_fused_multiply_add(compiled: dict[str, Machine], name: str) -> None:
    assert not re.findall(r"\bfma\.rn(?:\.ftz)?\.f(?:32|64)", compiled[name].ptx)


@pytest.mark.parametrize("name", VARIANTS)
def test_subnormals_are_not_flushed(compiled: dict[str, Machine], name: str) -> None:
    assert ".ftz" not in compiled[name].ptx


@pytest.mark.parametrize("name", [n for n in VARIANTS if "nearest" in n or "stochastic" in n])
def test_quantiser_divides_twice_a_block_and_by_ieee(compiled: dict[str, Machine], name: str) -> None:
    ptx = compiled[name].ptx
    assert len(re.findall(r"\bdiv\.rn\.f32", ptx)) == 2
    assert not re.findall(r"\bdiv\.(?:full|approx)|\brcp\.approx", ptx)


@pytest.mark.parametrize(("name", "loads", "stores"), [("nearest fp32", 4, 1), ("nearest bf16", 2, 1),
                                                       ("stochastic fp32", 4, 1), ("dequantize", 1, 4)])  # fmt: skip
def test_wide_loads_and_stores(compiled: dict[str, Machine], name: str, loads: int, stores: int) -> None:
    """16 elements a thread: 64 bytes of fp32, 32 of bf16, 16 of codes, in accesses of 128 bits."""
    sass = compiled[name].sass
    assert len(re.findall(r"\bLDG\.E[.A-Z]*\.128", sass)) == loads
    assert len(re.findall(r"\bSTG\.E[.A-Z]*\.128", sass)) == stores


def test_weighted_sum_reads_wide(compiled: dict[str, Machine]) -> None:
    sass = compiled["weighted_sum"].sass
    assert re.search(r"\bLDG\.E[.A-Z]*\.128", sass)
    assert len(re.findall(r"\bSTG\.E[.A-Z]*\.128", sass)) == 4


def test_nearest_quantiser_is_bound_by_memory(compiled: dict[str, Machine]) -> None:
    """At most 20 instructions an element: the issue limit of an H100 stays below a third of the time of its memory."""
    instructions = len(re.findall(r"^\s+/\*[0-9a-f]+\*/", compiled["nearest fp32"].sass, re.MULTILINE))
    assert instructions / 16 <= 20


def test_gram_uses_the_integer_tensor_cores(compiled: dict[str, Machine]) -> None:
    assert re.search(r"\bIMMA\b", compiled["gram"].sass)


@pytest.mark.parametrize("name", VARIANTS)
def test_blocks_are_addressed_in_64_bits(compiled: dict[str, Machine], name: str) -> None:
    """The program's number is widened before anything multiplies it: no element beyond 2^31 wraps."""
    ttir = compiled[name].ttir
    programs = re.findall(r"(%\w+) = tt\.get_program_id", ttir)
    assert programs
    for program in programs:
        uses = [
            line
            for line in ttir.splitlines()
            if re.search(rf"{re.escape(program)}\b", line) and "get_program_id" not in line
        ]
        assert all("arith.extsi" in line for line in uses)
