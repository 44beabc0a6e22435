"""The arrays of a step: spelled out, and the same whatever was written before."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from codegen.spec import Phase
from sandwich.engine.batching import build_batch
from sandwich.executor.base import Batch, ExecutorLimits
from sandwich.executor.inputs import StepInputs
from sandwich.executor.rehearsal import rehearsal
from sandwich.requests.request import Request
from sandwich.requests.sampling_params import SamplingParams
from sandwich.requests.want import NOT_SCORED

LIMITS = ExecutorLimits(
    block_size=4,
    num_blocks=64,
    max_num_seqs=5,
    max_num_batched_tokens=150,
    max_model_len=40,
    vocab_size=1000,
)


def request(prompt: list[int], blocks: list[int], num_computed: int = 0) -> Request:
    made = Request("r", prompt, SamplingParams())
    made.block_table.ids += blocks
    made.num_computed = num_computed
    return made


def rows(inputs: StepInputs, name: str, count: int) -> list[int]:
    found: list[int] = inputs.arrays[name][:count].tolist()
    return found


def test_chunks_of_two_prompts_lie_one_after_the_other() -> None:
    first = request([10, 11, 12, 13, 14, 15], [5, 3], num_computed=3)
    second = request([20, 21, 22], [7])
    inputs = StepInputs.of(LIMITS)
    num_tiles = inputs.write(build_batch(Phase.PREFILL, [first, second], [3, 2]), query_tile=2)
    assert rows(inputs, "token_ids", 5) == [13, 14, 15, 20, 21]
    assert rows(inputs, "positions", 5) == [3, 4, 5, 0, 1]
    assert rows(inputs, "slots", 5) == [5 * 4 + 3, 3 * 4, 3 * 4 + 1, 7 * 4, 7 * 4 + 1]
    assert inputs.arrays["tiles"][:num_tiles].tolist() == [[0, 0, 2], [0, 2, 1], [1, 3, 2]]
    assert inputs.arrays["block_tables"][:2, :2].tolist() == [[5, 3], [7, 0]]
    assert rows(inputs, "logit_rows", 1) == [2]


def test_a_decode_step_has_a_tile_of_one_token_each() -> None:
    first, second = request([1, 2, 3, 4, 5], [2, 9], num_computed=4), request([6], [4])
    inputs = StepInputs.of(LIMITS)
    assert inputs.write(build_batch(Phase.DECODE, [first, second], [1, 1]), query_tile=8) == 2
    assert rows(inputs, "token_ids", 2) == [5, 6]
    assert rows(inputs, "positions", 2) == [4, 0]
    assert rows(inputs, "slots", 2) == [36, 16]
    assert inputs.arrays["tiles"][:2].tolist() == [[0, 0, 1], [1, 1, 1]]
    assert rows(inputs, "logit_rows", 2) == [0, 1]


def test_a_chunk_may_span_blocks_and_begin_inside_one() -> None:
    chunk = request(list(range(100, 116)), [9, 2, 30, 11], num_computed=2)
    inputs = StepInputs.of(LIMITS)
    inputs.write(build_batch(Phase.PREFILL, [chunk], [13]))
    blocks = [9] * 2 + [2] * 4 + [30] * 4 + [11] * 3
    assert rows(inputs, "slots", 13) == [
        block * 4 + position % 4 for block, position in zip(blocks, range(2, 15), strict=True)
    ]
    assert rows(inputs, "token_ids", 13) == list(range(102, 115))
    assert rows(inputs, "positions", 13) == list(range(2, 15))


def test_a_table_that_grew_or_was_filled_anew_is_written_again() -> None:
    one = request([1] * 9, [5, 3], num_computed=7)
    inputs = StepInputs.of(LIMITS)
    inputs.write(build_batch(Phase.DECODE, [one], [1]))
    one.block_table.ids.append(8)
    inputs.write(build_batch(Phase.DECODE, [one], [1]))
    assert inputs.arrays["block_tables"][0, :3].tolist() == [5, 3, 8]
    one.block_table.clear()
    one.block_table.ids += [6, 1, 2]
    inputs.write(build_batch(Phase.DECODE, [one], [1]))
    assert inputs.arrays["block_tables"][0, :3].tolist() == [6, 1, 2]
    other = request([1] * 9, [4, 0, 7], num_computed=8)
    inputs.write(build_batch(Phase.DECODE, [other, one], [1, 1]))
    assert inputs.arrays["block_tables"][:2, :3].tolist() == [[4, 0, 7], [6, 1, 2]]


def test_scores_are_written_only_if_a_row_wants_one() -> None:
    inputs = StepInputs.of(LIMITS)
    plain = Request("plain", [1, 2], SamplingParams(temperature=0.0))
    plain.block_table.ids += [3]
    assert inputs.write_scored(build_batch(Phase.PREFILL, [plain], [2])) == 0
    scored = Request("scored", [7, 8, 9], SamplingParams(prompt_logprobs=4, temperature=0.0))
    scored.block_table.ids += [5]
    assert inputs.write_scored(build_batch(Phase.PREFILL, [plain, scored], [2, 3])) == 2
    assert rows(inputs, "targets", 4) == [8, 9, NOT_SCORED, NOT_SCORED]
    assert rows(inputs, "num_tops", 2) == [4, 4]


SEQUENCES = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30)), min_size=1, max_size=5)
SINGLES = st.lists(st.tuples(st.integers(0, 39), st.just(1)), min_size=1, max_size=5)


@given(st.lists(st.tuples(st.one_of(SEQUENCES, SINGLES), st.integers(1, 8)), max_size=6))
def test_what_was_written_before_leaves_no_trace(
    steps: list[tuple[list[tuple[int, int]], int]],
) -> None:
    used = StepInputs.of(LIMITS)
    for sequences, query_tile in steps:
        batch, fresh = rehearsal(Phase.PREFILL, sequences, 4, 1000), StepInputs.of(LIMITS)
        count = fresh.write(batch, query_tile)
        assert used.write(batch, query_tile) == count
        check_tiles(fresh.arrays["tiles"][:count].tolist(), batch, query_tile)
        sizes = {"tiles": count, "logit_rows": len(batch.logit_rows)}
        for name, array in fresh.arrays.items():
            if name != "block_tables":
                size = sizes.get(name, batch.num_tokens)
                np.testing.assert_array_equal(used.arrays[name][:size], array[:size], name)
        for row, owner in enumerate(batch.requests):
            ids = owner.block_table.ids
            assert used.arrays["block_tables"][row, : len(ids)].tolist() == ids


def check_tiles(tiles: list[list[int]], batch: Batch, query_tile: int) -> None:
    """They cover every token row once, within its sequence; only a sequence's last is a tail."""
    ends = np.cumsum(batch.num_new).tolist()
    assert [first + i for _, first, n in tiles for i in range(n)] == list(range(batch.num_tokens))
    for sequence, first, num_rows in tiles:
        assert ends[sequence] - batch.num_new[sequence] <= first
        assert first + num_rows <= ends[sequence]
        assert 1 <= num_rows <= query_tile
        assert num_rows == query_tile or first + num_rows == ends[sequence]
