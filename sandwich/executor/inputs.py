"""The arrays that tell a step what to compute, written in place from a batch.

The next native call waits for this, on caches that the weights have just swept. Memory views touch
a fraction of the code and data that NumPy does, and what is in the arrays already is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from sandwich.executor.base import Batch, ExecutorLimits, Int32Array
from sandwich.requests.blocks import BlockTable
from sandwich.requests.request import Request
from sandwich.requests.want import NOT_SCORED

METADATA = (
    "token_ids",
    "positions",
    "slots",
    "tiles",
    "block_tables",
    "logit_rows",
    "targets",
    "num_tops",
)


class StepInputs:
    """Writes batches into `arrays`, which nobody else may write; all are int32 and contiguous.

    token_ids, positions, slots: (max_num_tokens,) of each token row; a slot, where its K and V go,
    is block id * block_size + offset in the block. tiles: (max_num_tokens, 3), each sequence's rows
    cut in pieces: sequence, first row, rows. block_tables: (max_num_seqs, most blocks of one).
    logit_rows, targets, num_tops: (max_num_tokens,) of each wanted row, the last two written by
    `write_scored`.
    """

    def __init__(self, arrays: Mapping[str, Int32Array], num_blocks: int, block_size: int) -> None:
        self.arrays = {name: arrays[name] for name in METADATA}
        self._block_size = block_size
        views = (array.reshape(-1).data for array in self.arrays.values())
        self._token_ids, self._positions, self._slots, self._tiles, _, *others = views
        self._logit_rows, self._targets, self._num_tops = others
        self._tables = [(0, 0)] * len(arrays["block_tables"])  # stamp and length of those in there
        self._num_singles = 0  # tiles that are known to be of one token each, from the first on
        longest = max(num_blocks, arrays["block_tables"].shape[1]) * block_size
        self._numbers = np.arange(longest, dtype=np.int32).data

    @staticmethod
    def of(limits: ExecutorLimits) -> StepInputs:
        """With arrays of their own for the largest batch."""
        tokens = (limits.max_step_tokens,)
        most_blocks = -(-limits.max_model_len // limits.block_size)
        tables = (limits.max_num_seqs, most_blocks)
        shapes = (*(tokens,) * 3, (*tokens, 3), tables, *(tokens,) * 3)
        arrays = {n: np.zeros(shape, np.int32) for n, shape in zip(METADATA, shapes, strict=True)}
        return StepInputs(arrays, limits.num_blocks, limits.block_size)

    def write(self, batch: Batch, query_tile: int = 1) -> int:
        """Write the batch; the number of tiles, which have `query_tile` rows at most."""
        row = 0
        for index, (request, start, count) in enumerate(
            zip(batch.requests, batch.starts, batch.num_new, strict=True)
        ):
            table = request.block_table
            if self._tables[index] != (table.stamp, len(table.ids)):
                self._write_table(index, table)
            if count == 1:
                self._write_token(row, request, start)
            else:
                self._write_tokens(row, request, start, count)
            row += count
        logit_rows = self._logit_rows
        for index, token_row in enumerate(batch.logit_rows):
            logit_rows[index] = token_row
        if row == len(batch.requests):
            return self._write_single_tiles(row)
        return self._write_tiles(batch, query_tile)

    def write_scored(self, batch: Batch) -> int:
        """Write what scores are wanted of the batch's rows, if any are; the number of such rows."""
        num_scored = len([want for want in batch.wants if want.target != NOT_SCORED])
        if num_scored:
            for row, want in enumerate(batch.wants):
                self._targets[row], self._num_tops[row] = want.target, want.num_top
        return num_scored

    def _write_table(self, index: int, table: BlockTable) -> None:
        stamp, num_blocks = self._tables[index]
        first = num_blocks if stamp == table.stamp else 0
        self.arrays["block_tables"][index, first : len(table.ids)] = table.ids[first:]
        self._tables[index] = table.stamp, len(table.ids)

    def _write_token(self, row: int, request: Request, position: int) -> None:
        block, offset = divmod(position, self._block_size)
        self._token_ids[row] = request.token_ids.item(position)
        self._positions[row] = position
        self._slots[row] = request.block_table.ids[block] * self._block_size + offset

    def _write_tokens(self, row: int, request: Request, start: int, count: int) -> None:
        numbers, size, end = self._numbers, self._block_size, start + count
        self._token_ids[row : row + count] = request.token_ids[start:end].data
        self._positions[row : row + count] = numbers[start:end]
        while start < end:
            block, offset = divmod(start, size)
            length = min(size - offset, end - start)
            slot = request.block_table.ids[block] * size + offset
            self._slots[row : row + length] = numbers[slot : slot + length]
            row += length
            start += length

    def _write_single_tiles(self, count: int) -> int:
        tiles = self._tiles
        for row in range(self._num_singles, count):
            tiles[3 * row] = tiles[3 * row + 1] = row
            tiles[3 * row + 2] = 1
        self._num_singles = max(self._num_singles, count)
        return count

    def _write_tiles(self, batch: Batch, query_tile: int) -> int:
        self._num_singles = 0
        tiles, at = self._tiles, 0
        for tile in query_tiles(batch.num_new, query_tile):
            tiles[at], tiles[at + 1], tiles[at + 2] = tile
            at += 3
        return at // 3


def query_tiles(num_new: Sequence[int], query_tile: int) -> Iterator[tuple[int, int, int]]:
    """Each sequence's token rows in tiles: sequence, first row, number of rows."""
    first = 0
    for sequence, count in enumerate(num_new):
        end = first + count
        for row in range(first, end, query_tile):
            yield sequence, row, min(query_tile, end - row)
        first = end
