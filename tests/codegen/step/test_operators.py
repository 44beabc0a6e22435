"""The operators between the GEMMs, one at a time, for every ISA this CPU runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from codegen import reference
from codegen.kit import T
from codegen.layout.arrays import widen
from codegen.layout.model import KvLayout
from codegen.model.tables import embedding, rotation
from codegen.spec import LayerKind, NormPlace, Traits
from codegen.step.arguments import Layouts
from codegen.step.elementwise import (
    add_normed,
    argmax_of_shares,
    argmax_share,
    rms_norm,
    rope_and_cache,
)
from codegen.step.embedding import embed
from codegen.step.program import run
from codegen.step.step import LogitBlock, Step
from platforms.isa import isa_row
from tests.codegen.conftest import (
    BEST,
    BLOCK_SIZE,
    ISAS,
    Array,
    Compile,
    Kernel,
    as_dtype,
    each_target,
    is_poison,
    make_spec,
    normal,
    panel_of,
    read_acts,
    same_bits,
)

LAYER = 1  # of two
NUM_CORES = 3
FIRST_ROW = 2  # of a block of logits, in its step
BF16_STEP = 2.0**-8  # of a value just rounded to bf16


def embed_kernel(compile_body: Compile, isa: str, dtype: str, **shape: Any) -> Kernel:
    spec = make_spec(isa, dtype, num_cores=NUM_CORES, vocab_size=2 * panel_of(isa) + 5, **shape)
    role = embedding(spec.shape)
    return compile_body(spec, lambda step: run(step, "embed", lambda core: embed(step, core, role)))


def embed_all(kernel: Kernel) -> Array:
    """x of tokens at the ends of the vocabulary and of every panel."""
    vocab, panel = kernel.spec.shape.vocab_size, kernel.spec.panel
    ids = [0, vocab - 1, panel - 1, panel, 2 * panel - 1, 2 * panel, 7, 7]
    kernel["x"][: len(ids)] = 0.0
    kernel["token_ids"][: len(ids)] = ids
    kernel(num_tokens=len(ids))
    assert is_poison(kernel["x"][len(ids) :])
    return kernel["x"][: len(ids)]


def assert_rows(x: Array, rows: Array) -> None:
    np.testing.assert_array_equal(x[:, : rows.shape[1]], rows)
    assert not x[:, rows.shape[1] :].any()


@each_target
def test_a_token_becomes_its_row_of_the_table(compile_body: Compile, isa: str, dtype: str) -> None:
    kernel = embed_kernel(compile_body, isa, dtype, hidden_size=37)
    table = kernel["embed_tokens"]
    table[:] = as_dtype(normal(*table.shape), dtype)
    x = embed_all(kernel)
    assert_rows(x, reference.embedding(table, kernel["token_ids"][: len(x)]))


@each_target
def test_a_token_becomes_its_row_of_the_lm_head(
    compile_body: Compile, isa: str, dtype: str
) -> None:
    for scale in (1.0, 6.0625):
        kernel = embed_kernel(
            *(compile_body, isa, dtype),
            hidden_size=37,
            tied_embeddings=True,
            traits=Traits(embedding_scale=scale),
        )
        rows = kernel.set_weight("lm_head", normal(kernel.spec.shape.vocab_size, 37))
        x = embed_all(kernel)
        assert_rows(x, rows[kernel["token_ids"][: len(x)]] * np.float32(scale))


@pytest.mark.parametrize("num_vectors", [1, 6])  # fewer and more than there are running sums
@each_target
def test_rows_are_normed_by_their_root_mean_square(
    compile_body: Compile, isa: str, dtype: str, num_vectors: int
) -> None:
    hidden = num_vectors * isa_row(isa).lanes - 1
    spec = make_spec(isa, dtype, num_cores=NUM_CORES, hidden_size=hidden)

    def body(step: Step) -> None:
        def every_row(core: object) -> None:
            weight = step.b["input_norm"]
            load = step.kit.load
            rms_norm(step, core, lambda at: load(weight, LAYER, at), "normed", step.num_tokens)

        def wanted_rows(core: object) -> None:
            weight, rows = step.b["norm"], step.b["logit_rows"]
            load = step.kit.load
            rms_norm(
                step, core, lambda at: load(weight, at), "final", step.num_logits, lambda r: rows[r]
            )

        run(step, "input_norm", every_row)
        run(step, "norm", wanted_rows)

    kernel = compile_body(spec, body)
    kernel["x"][:9] = 0.0
    kernel["x"][:8, :hidden] = normal(8, hidden) * 10.0 ** np.arange(-4, 4)[:, None]  # and zeros
    kernel["input_norm"][LAYER, :hidden], kernel["norm"][:hidden] = normal(2, hidden, seed=1)
    wanted = [8, 0, 3, 3]
    kernel["logit_rows"][: len(wanted)] = wanted
    kernel(num_tokens=9, num_logits=len(wanted))
    step = BF16_STEP if kernel.kit.has_dot else 1e-6
    for name, weight, rows in (
        ("normed", kernel["input_norm"][LAYER, :hidden], np.arange(9)),
        ("final", kernel["norm"][:hidden], np.array(wanted)),
    ):
        x = kernel["x"][rows, :hidden]
        expected = reference.rms_norm(x, weight, spec.shape.rms_norm_eps)
        actual = kernel.acts(name)[: len(rows)]
        np.testing.assert_allclose(actual[:, :hidden], expected, rtol=step)
        assert not actual[:, hidden:].any()
        assert is_poison(kernel[name][len(rows) :])


@pytest.mark.parametrize("num_vectors", [1, 3, 6])
@each_target
def test_normed_products_are_added_to_the_residual_stream(
    compile_body: Compile, isa: str, dtype: str, num_vectors: int
) -> None:
    hidden = num_vectors * isa_row(isa).lanes - 1
    spec = make_spec(
        isa, dtype, num_cores=NUM_CORES, hidden_size=hidden, traits=Traits(norms=NormPlace.AROUND)
    )

    def body(step: Step) -> None:
        def weight(at: object) -> object:
            return step.kit.load(step.b["post_mlp_norm"], T.int32(LAYER), at)

        run(step, "post_mlp_norm", lambda core: add_normed(step, core, "product", weight))

    kernel = compile_body(spec, body)
    kernel["x"][:9] = kernel["product"][:9] = 0.0
    before = kernel["x"][:9, :hidden] = normal(9, hidden, seed=1)
    kernel["product"][:8, :hidden] = normal(8, hidden) * 10.0 ** np.arange(-4, 4)[:, None]
    weight = kernel["post_mlp_norm"][LAYER, :hidden] = normal(1, hidden, seed=2)[0]
    kernel(num_tokens=9)
    products = kernel["product"][:9, :hidden]
    expected = before + reference.rms_norm(products, weight, spec.shape.rms_norm_eps)
    np.testing.assert_allclose(kernel["x"][:9, :hidden], expected, rtol=1e-5, atol=1e-6)
    assert not kernel["x"][:9, hidden:].any()
    assert is_poison(kernel["x"][9:])


# (block, offset) of each token, by sequence: they begin and end at even and odd offsets, one goes
# on in another block, some are one token long.
RUNS = [
    [(7, 5), (7, 6), (7, 7), (7, 8)],
    [(2, BLOCK_SIZE - 1), (4, 0), (4, 1)],
    [(0, 6)],
    [(1, 9)],
    [(3, BLOCK_SIZE - 2), (3, BLOCK_SIZE - 1), (9, 0)],
]
SLOTS = np.array([block * BLOCK_SIZE + at for run in RUNS for block, at in run], np.int32)
NEIGHBOURS = np.array([7 * BLOCK_SIZE + 9, 7, 9 * BLOCK_SIZE + 1], np.int32)  # never written


def rope_kernel(
    compile_body: Compile, isa: str, dtype: str, kv_dtype: str, table: int = 0
) -> Kernel:
    """Ready to run on SLOTS, with random bits in the cache and table number `table` in use."""
    spec = make_spec(
        *(isa, dtype),
        kv_dtype=kv_dtype,
        num_cores=NUM_CORES,
        num_heads=4,
        num_kv_heads=2,
        head_dim=20,
        traits=Traits((LayerKind(rotation=table),)),
    )
    kernel = compile_body(
        spec,
        lambda step: run(
            step, "rope_and_cache", lambda core: rope_and_cache(step, core, T.int32(LAYER), table)
        ),
    )
    rng = np.random.default_rng(0)
    for name in ("keys", "values"):
        words = kernel[name].view(np.int32)
        words[:] = rng.integers(-(1 << 31), 1 << 31, words.shape, np.int32)
    for index in range(table + 1):
        cos, sin = rotation(index)
        angles = rng.uniform(0, 7, kernel[cos].shape)
        kernel[cos][:], kernel[sin][:] = np.cos(angles), np.sin(angles)
    kernel["qkv_out"][: len(SLOTS)] = normal(len(SLOTS), kernel["qkv_out"].shape[1])
    kernel["slots"][: len(SLOTS)] = SLOTS
    kernel["positions"][: len(SLOTS)] = rng.integers(0, spec.shape.max_model_len, len(SLOTS))
    return kernel


def rotated_heads(kernel: Kernel) -> tuple[Array, Array, Array]:
    """Queries, keys and values (tokens, heads, head_dim) that the kernel ought to make."""
    shape, num_tokens = kernel.spec.shape, len(SLOTS)
    columns = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    heads = kernel["qkv_out"][:num_tokens, :columns].reshape(num_tokens, -1, shape.head_dim)
    queries, keys, values = np.split(heads, [shape.num_heads, -shape.num_kv_heads], axis=1)
    names = rotation(shape.traits.num_rotations - 1)
    cos, sin = (kernel[name][kernel["positions"][:num_tokens]] for name in names)
    return reference.rope(queries, cos, sin), reference.rope(keys, cos, sin), values


def cached(words: Array, kv: KvLayout) -> Array:
    """The values of cache words, in their order."""
    return widen(words.view(np.uint16 if kv.dtype == "bfloat16" else np.float32))


def written(
    kernel: Kernel, keys: Array, values: Array, before: dict[str, Array]
) -> dict[str, Array]:
    """What the cache holds if these heads are written over `before`."""
    kv = Layouts.of(kernel.spec).kv
    after = {name: words.copy() for name, words in before.items()}
    layers = after["keys"][LAYER], after["values"][LAYER]
    reference.write_kv(*layers, keys, values, SLOTS, kv)
    if kv.kr == 2:
        keys_again = before["keys"][LAYER].copy()
        nothing = np.zeros((len(NEIGHBOURS), kv.num_kv_heads, kv.head_dim), np.float32)
        reference.write_kv(keys_again, layers[1], nothing, nothing, NEIGHBOURS, kv)
    return after


@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("isa", ISAS)
def test_keys_and_values_go_to_their_slots_and_nowhere_else(
    compile_body: Compile, isa: str, kv_dtype: str
) -> None:
    kernel = rope_kernel(compile_body, isa, "bfloat16", kv_dtype)
    before = {name: kernel[name].copy() for name in ("keys", "values")}
    _, keys, values = rotated_heads(kernel)
    kernel(num_tokens=len(SLOTS))
    expected = written(kernel, keys, values, before)
    # Of a pair of values, the half behind a sequence's last token becomes zero, the half before its
    # first token is kept.
    assert same_bits(kernel["values"], expected["values"])
    kv = Layouts.of(kernel.spec).kv
    not_a_number = written(kernel, np.full_like(keys, np.nan), values, before)["keys"]
    is_new = not_a_number.view(np.int32) != before["keys"].view(np.int32)
    assert same_bits(kernel["keys"][~is_new], before["keys"][~is_new])
    np.testing.assert_allclose(
        cached(kernel["keys"][is_new], kv),
        cached(expected["keys"][is_new], kv),
        rtol=BF16_STEP if kv.kr == 2 else 1e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize("isa", ISAS)
def test_integers_go_to_their_slots_with_their_scales_and_nowhere_else(
    compile_body: Compile, isa: str
) -> None:
    kernel = rope_kernel(compile_body, isa, "bfloat16", "int8")
    kv = Layouts.of(kernel.spec).kv
    before = {name: kernel[name].copy() for name in kv.tensor_specs()}
    _, keys, values = rotated_heads(kernel)
    kernel(num_tokens=len(SLOTS))
    expected = {name: words.copy() for name, words in before.items()}
    of_layer = [words[LAYER] for words in expected.values()]
    reference.write_kv(of_layer[0], of_layer[1], keys, values, SLOTS, kv, of_layer[2:])
    for name, words in expected.items():
        if name.endswith("scales"):
            is_new = words.view(np.int32) != before[name].view(np.int32)
            assert is_new.sum() == len(SLOTS) * kv.num_kv_heads
            assert same_bits(kernel[name][~is_new], before[name][~is_new])
            np.testing.assert_allclose(kernel[name][is_new], words[is_new], rtol=1e-6)
        else:  # a value in the middle between two integers may go to either
            steps = kernel[name].view(np.int8) - words.view(np.int8).astype(np.int32)
            assert np.abs(steps).max() <= 1
            assert (steps != 0).mean() < 1e-3


def test_two_tokens_in_one_word_may_belong_to_two_cores(compile_body: Compile) -> None:
    kernel = rope_kernel(compile_body, BEST, "bfloat16", "bfloat16")
    kv, slots = Layouts.of(kernel.spec).kv, np.arange(1, 127, dtype=np.int32)
    kernel["slots"][: len(slots)] = slots
    # The last core begins with token 42 of the second head, the odd one of a pair, long before the
    # core before it comes to its last token, the even one.
    begin = 2 * (kv.num_kv_heads * len(slots)) // NUM_CORES - len(slots)
    assert (begin, slots[begin] % 2) == (42, 1)
    kernel["qkv_out"][: len(slots)] = normal(len(slots), kernel["qkv_out"].shape[1])
    values = np.zeros((len(slots) + 1, kv.num_kv_heads, kv.head_dim), np.float32)
    columns = slice(6 * kv.head_dim, 8 * kv.head_dim)  # after the heads of queries and keys
    values[:-1] = kernel["qkv_out"][: len(slots), columns].reshape(values[:-1].shape)
    keys, expected = (kernel[name][LAYER].copy() for name in ("keys", "values"))
    reference.write_kv(keys, expected, values, values, np.arange(1, 128, dtype=np.int32), kv)
    for _ in range(20):  # after the first, both threads are awake
        kernel(num_tokens=len(slots))
        assert same_bits(kernel["values"][LAYER], expected)


@pytest.mark.parametrize("table", [0, 1])
@each_target
def test_queries_leave_rotated_scaled_and_padded(
    compile_body: Compile, isa: str, dtype: str, table: int
) -> None:
    kernel = rope_kernel(compile_body, isa, dtype, dtype, table)
    queries, _, _ = rotated_heads(kernel)
    kernel(num_tokens=len(SLOTS))
    head_dim = kernel.spec.shape.head_dim
    actual = read_acts(kernel.kv_kit, kernel["queries"])[: len(SLOTS)]
    actual = actual.reshape(*queries.shape[:2], -1)
    step = BF16_STEP if kernel.kv_kit.has_dot else 1e-6
    expected = queries * np.float32(np.log2(np.e) / head_dim**0.5)
    np.testing.assert_allclose(actual[..., :head_dim], expected, rtol=step, atol=1e-6)
    assert not actual[..., head_dim:].any()
    assert is_poison(kernel["queries"][len(SLOTS) :])


@each_target
def test_a_rotation_does_not_depend_on_the_tokens_beside_it(
    compile_body: Compile, isa: str, dtype: str
) -> None:
    kernel = rope_kernel(compile_body, isa, dtype, dtype)
    kernel(num_tokens=len(SLOTS))
    together = {name: kernel[name].copy() for name in ("queries", "keys", "values")}
    kernel.poison("queries")
    for token in range(len(SLOTS)):
        for name in ("slots", "positions", "qkv_out"):
            kernel[name][0] = kernel[name][token]
        kernel(num_tokens=1)
        assert same_bits(kernel["queries"][0], together["queries"][token])
    for name in ("keys", "values"):
        assert same_bits(kernel[name], together[name])


@pytest.mark.parametrize("num_cores", [1, NUM_CORES])
@pytest.mark.parametrize("vocab", [3, 101])
@pytest.mark.parametrize("isa", ISAS)
def test_the_lowest_id_among_the_largest_logits_is_found(
    compile_body: Compile, isa: str, vocab: int, num_cores: int
) -> None:
    spec = make_spec(isa, "float32", num_cores=num_cores, vocab_size=vocab)

    def body(step: Step) -> None:
        rows = LogitBlock(FIRST_ROW, step.num_logits)
        run(step, "argmax", lambda core: argmax_share(step, core, rows))
        run(step, "argmax", lambda core: argmax_of_shares(step, core, rows))

    kernel = compile_body(spec, body)
    rows = np.concatenate((normal(20, vocab), np.zeros((1, vocab)), np.full((1, vocab), -np.inf)))
    ends = np.full((vocab, vocab), -np.inf)
    np.fill_diagonal(ends, -3e38)  # each id in turn
    ties = np.round(normal(40, vocab, seed=1) * 2)
    logits = np.concatenate((rows, ends, ties))[: len(kernel["logits"]) - FIRST_ROW]
    logits = logits.astype(np.float32)
    kernel["logits"][: len(logits), :vocab] = logits
    kernel["logits"][:, vocab:] = np.inf  # padding never wins
    kernel(num_logits=len(logits))
    found, expected = slice(FIRST_ROW, FIRST_ROW + len(logits)), reference.argmax(logits)
    np.testing.assert_array_equal(kernel["argmax"][found], expected)
    np.testing.assert_array_equal(kernel["peaks"][found], logits.max(axis=1))
    for name in ("argmax", "peaks"):
        assert is_poison(kernel[name][:FIRST_ROW])
        assert is_poison(kernel[name][FIRST_ROW + len(logits) :])
