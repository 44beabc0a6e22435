"""The ARM rows, from any host: whole programs lower to object files; kernels run under QEMU.

The slow tests run the tests of the other kernel files on an emulated CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import pytest

from codegen.compile import lower, object_code, tensor
from codegen.gemm.program import NAME as GEMM_NAME
from codegen.gemm.program import GemmProgram, GemmSpec, gemm_module
from codegen.intrinsics import intrinsics_for
from codegen.spec import Phase, WeightFormat
from codegen.step.program import phase_program
from platforms.isa import ISA_TABLE, IsaRow, isa_row
from platforms.memory import Arena
from sandwich.executor.compiled import CompiledExecutor
from sandwich.executor.launcher import Launcher
from sandwich.executor.programs import PhaseProgram
from sandwich.executor.specs import program_specs, step_bytes
from tests.codegen import test_intrinsics
from tests.codegen.conftest import GIVEN_SYMBOLS, Array, Compile, make_kernel, undefined_symbols
from tests.codegen.emulator import Emulator, missing_tools
from tests.codegen.gemm import test_formats, test_nest
from tests.codegen.step import test_attention, test_operators, test_program
from tests.sandwich.executor.conftest import LIMITS, TinyModel

AARCH64 = 183  # e_machine of its ELF files
ROWS = [row for row in ISA_TABLE if row.arch == "aarch64"]
# The rows in between add integers only.
TARGETS = [("neon", "float32"), ("neon", "bfloat16"), ("neon_bf16", "bfloat16")]
each_target = pytest.mark.parametrize(("isa", "dtype"), TARGETS, ids="-".join)


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    if missing := missing_tools():
        pytest.skip(f"no {', '.join(missing)}: apt-get install gcc-aarch64-linux-gnu qemu-user")
    return Emulator(tmp_path_factory.mktemp("aarch64"))


@pytest.fixture(scope="module")
def compile_for_emulator(emulator: Emulator, launcher: Launcher) -> Compile:
    return lambda spec, body: make_kernel(spec, body, emulator.link, launcher)


def test_a_whole_program_lowers_to_an_object_file() -> None:
    isa = ROWS[-1].name
    model = TinyModel.make(isa, "bfloat16")
    layout, kv = model.weights.layout, model.kv
    specs = program_specs(model.plans, layout, kv.dtype, LIMITS)
    spec = specs[Phase.DECODE]
    code = object_code(lower(phase_program(spec), isa_row(isa)))
    assert code.startswith(b"\x7fELF")
    assert int.from_bytes(code[18:20], "little") == AARCH64
    assert undefined_symbols(code) <= GIVEN_SYMBOLS


INTRINSICS = [
    (row, name)
    for row in ROWS
    for name, intrinsic in intrinsics_for(row).items()
    if name in test_intrinsics.CASES
    if not row.extends or intrinsics_for(row.extends).get(name) is not intrinsic
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "name"), INTRINSICS, ids=[f"{row.name}-{name}" for row, name in INTRINSICS]
)
def test_a_spelling_does_what_its_meaning_says(emulator: Emulator, row: IsaRow, name: str) -> None:
    test_intrinsics.check_meaning(row, name, emulator.link)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["neon", "neon_bf16"])
def test_floats_are_rounded_as_elsewhere(emulator: Emulator, isa: str) -> None:
    test_intrinsics.check_multiply_add(isa_row(isa), emulator.link)
    test_intrinsics.check_rounding_of_pairs(isa_row(isa), emulator.link)


@pytest.mark.slow
@pytest.mark.parametrize("size", test_nest.SIZES.values(), ids=test_nest.SIZES)
@each_target
def test_gemm_is_right_under_emulation(
    compile_for_emulator: Compile, isa: str, dtype: str, size: test_nest.Size
) -> None:
    test_nest.test_any_number_of_rows_by_any_matrix(compile_for_emulator, isa, dtype, size)


class EmulatedGemm(GemmProgram):
    """A GEMM whose machine code runs on an emulator."""

    def __init__(self, emulator: Emulator, spec: GemmSpec, buffers: Mapping[str, Array]) -> None:
        self.spec, self._arrays = spec, dict(buffers)
        code = object_code(lower(gemm_module(spec), isa_row(spec.isa)))
        assert undefined_symbols(code) <= GIVEN_SYMBOLS
        self._function = emulator.link(code, GEMM_NAME)
        self._tensors = [tensor(buffers[name]) for name in spec.arguments()]


def formats_of(isas: list[str], formats: list[WeightFormat]) -> pytest.MarkDecorator:
    each = [(isa, weights) for isa in isas for weights in formats]
    names = [f"{isa}-{w.name.replace(' ', '')}-{w.scale_dtype}" for isa, w in each]
    return pytest.mark.parametrize(("isa", "weights"), each, ids=names)


@pytest.fixture
def emulated_gemms(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_formats, "GemmProgram", partial(EmulatedGemm, emulator))


@pytest.mark.slow
@pytest.mark.usefixtures("emulated_gemms")
@formats_of(["neon", "neon_dotprod", "neon_i8mm"], test_formats.INTEGER_FORMATS)
def test_integer_products_are_right_under_emulation(isa: str, weights: WeightFormat) -> None:
    test_formats.check(isa, weights, test_formats.SIZES["more-than-a-panel"])


@pytest.mark.slow
@pytest.mark.usefixtures("emulated_gemms")
@formats_of(["neon", "neon_bf16"], test_formats.FLOAT_FORMATS)
def test_widened_products_are_right_under_emulation(isa: str, weights: WeightFormat) -> None:
    size, tiles = test_formats.SIZES["more-than-a-panel"], test_formats.WIDENED
    test_formats.check(isa, weights, size, tiles=tiles)


SAME_ON_EMULATOR = [
    test_nest.test_a_row_is_the_same_to_the_last_bit_for_every_tile_and_number_of_cores,
    test_operators.test_a_token_becomes_its_row_of_the_table,
    test_operators.test_a_token_becomes_its_row_of_the_lm_head,
    test_operators.test_queries_leave_rotated_scaled_and_padded,
    test_operators.test_a_rotation_does_not_depend_on_the_tokens_beside_it,
    test_operators.test_keys_and_values_go_to_their_slots_and_nowhere_else,
]


@pytest.mark.slow
@pytest.mark.parametrize("test", SAME_ON_EMULATOR, ids=lambda test: test.__name__[5:])
@each_target
def test_kernels_are_right_under_emulation(
    compile_for_emulator: Compile, isa: str, dtype: str, test: Callable[[Compile, str, str], None]
) -> None:
    test(compile_for_emulator, isa, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("heads", [test_attention.PAIRS, test_attention.FOURS], ids=str)
@each_target
def test_attention_is_right_under_emulation(
    compile_for_emulator: Compile, isa: str, dtype: str, heads: test_attention.Heads
) -> None:
    for test in (
        test_attention.test_prefill_attends_to_all_that_came_before,
        test_attention.test_decode_attends_like_prefill_to_the_last_bit,
    ):
        test(compile_for_emulator, isa, dtype, heads)


@pytest.fixture(scope="module", params=TARGETS, ids="-".join)
def emulated_pair(
    request: pytest.FixtureRequest, emulator: Emulator, launcher: Launcher
) -> test_program.Pair:
    isa, dtype = request.param
    model = TinyModel.make(isa, dtype)
    layout, kv = model.weights.layout, model.kv
    specs = program_specs(model.plans, layout, kv.dtype, LIMITS)
    programs = {
        phase: PhaseProgram(
            spec,
            emulator.link(object_code(lower(phase_program(spec), isa_row(isa))), phase.value),
            launcher,
        )
        for phase, spec in specs.items()
    }
    arena = Arena(kv.keys.arena_nbytes + kv.values.arena_nbytes, "cache")
    cache = {
        "keys": arena.array(kv.keys.shape, kv.keys.dtype),
        "values": arena.array(kv.values.shape, kv.values.dtype),
    }
    workspace = Arena(step_bytes(specs), "workspace")
    executor = CompiledExecutor(programs, LIMITS, model.weights.tensors, cache, workspace)
    return test_program.Pair(dtype, executor, model.reference())


@pytest.mark.slow
@pytest.mark.parametrize(
    "test",
    [
        test_program.test_both_phases_compute_what_the_reference_computes_in_one_cache,
        test_program.test_logits_are_the_same_to_the_last_bit_in_any_chunk_phase_and_batch,
    ],
    ids=lambda test: test.__name__[5:],
)
def test_whole_programs_are_right_under_emulation(
    emulated_pair: test_program.Pair, test: Callable[[test_program.Pair], None]
) -> None:
    test(emulated_pair)
