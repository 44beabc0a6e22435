"""Paged attention for both phases: blockwise softmax(QK)V over the KV cache, causal, grouped
queries.

A unit of work is one KV head and one query tile: up to `query_tile` consecutive tokens of a
sequence with all the query heads that share the head, so keys and values are read once for all of
them. Both products are register tiles as in codegen.gemm.nest, with tokens in lanes for QK and dims
in lanes for PV. Blocks come in ascending order and a row's arithmetic is the same in every tile, so
its result depends on neither phase, chunk nor batch. The running softmax is that of
FlashAttention-2 (arXiv 2307.08691).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from codegen.cores.parallel import split
from codegen.gemm.register_tile import Accumulators, k_loop
from codegen.kit import CACHE_LINE_BYTES, Expr, T
from codegen.layout.arrays import round_up
from codegen.spec import Phase
from codegen.step.arguments import TILE_FIELDS
from codegen.step.elementwise import LOG2_E
from codegen.step.step import Step

_Product = Callable[[Expr, int, int, int], None]  # (first row, rows, first vector, vectors)

K_UNROLL = 2  # words of the reduction per turn of the inner loops


def attention(step: Step, core: Expr, layer: Expr, window: int = 0) -> None:
    """attended[t, h, :] for the units of `core`, heads before tiles; of all keys before and at a
    token or of the last `window` of them.
    """
    spec = step.spec
    begin, end = split(core, spec.num_shares, step.num_tiles * spec.shape.num_kv_heads)
    tiles = (_QueryTile(step, layer, num_tokens, window) for num_tokens in (spec.query_tile, 1))
    whole, single = tiles
    with T.serial(begin, end) as unit:
        head = T.bind(unit // step.num_tiles)
        tile = T.bind(unit % step.num_tiles)
        sequence, first, count = (
            T.bind(step.b["tiles"][tile, part]) for part in range(TILE_FIELDS)
        )
        if spec.query_tile == 1:
            single.emit(head, sequence, first)
        else:
            with T.If(count == spec.query_tile):
                with T.Then():
                    whole.emit(head, sequence, first)
                with T.Else(), T.serial(0, count) as i:
                    single.emit(head, sequence, first + i)


@dataclass(frozen=True)
class _QueryTile:
    """The code for `num_tokens` consecutive tokens; its rows are (token, query head of the
    group).
    """

    step: Step
    layer: Expr
    num_tokens: int
    window: int  # 0: all keys

    @property
    def rows(self) -> int:
        return self.num_tokens * self.step.spec.shape.group_size

    def emit(self, head: Expr, sequence: Expr, first: Expr) -> None:
        """Attention of the tile that begins at token row `first`."""
        step, lanes = self.step, self.step.kit.lanes
        block_size = step.kv.block_size
        position = T.bind(step.b["positions"][first])
        state = _State.allocate(self)
        state.reset()
        visible = T.bind(position + self.num_tokens)  # tokens the last row sees
        num_blocks = T.bind((visible + (block_size - 1)) // block_size)
        first_block = 0
        if self.window:  # the first block that the first row sees
            unseen = T.bind(T.max(position - (self.window - 1), 0))
            first_block = T.bind(unseen // block_size)
        with T.serial(first_block, num_blocks) as i:
            block = T.bind(T.cast(step.b["block_tables"][sequence, i], "int64"))
            start = T.bind(i * block_size)
            if step.spec.phase is Phase.DECODE:
                self._prefetch(head, sequence, T.min(i + 1, num_blocks - 1))
            self._scores(state, head, first, block, position + 1 - start)
            self._softmax(state, head, block)
            self._weigh(state, head, block, T.bind(T.min(visible - start, block_size)))
        self._store(state, head, first)

    def _store(self, state: _State, head: Expr, first: Expr) -> None:
        """attended = out / sums"""
        step, kit, dims = self.step, self.step.kit, self.step.kv.head_dim_padded
        is_grouped = step.group_of("attended") > 0
        with T.serial(0, self.rows) as row:
            token, query_head = self._token_and_head(row, head, first)
            total = kit.call("sw_hsum", kit.load(state.sums, row, 0))
            inverse = kit.splat(T.bind(T.float32(1) / total))
            with T.serial(0, dims // kit.lanes) as j:
                vector = kit.load(state.out, row, j * kit.lanes) * inverse
                if is_grouped:
                    kit.store(state.out, (row, j * kit.lanes), vector)
                else:
                    step.store_part("attended", token, query_head * dims + j * kit.lanes, vector)
        if is_grouped:
            self._store_groups(state, head, first)

    def _store_groups(self, state: _State, head: Expr, first: Expr) -> None:
        """attended = out, in groups of columns that may be parts of a head or several heads."""
        step, kit, dims = self.step, self.step.kit, self.step.kv.head_dim_padded
        size, heads = step.group_of("attended"), step.spec.shape.group_size
        num_groups = heads * dims // size
        with T.serial(0, self.num_tokens) as token, T.serial(0, num_groups) as group:
            columns = [T.bind(group * size + at) for at in range(0, size, kit.lanes)]
            vectors = [
                T.bind(kit.load(state.out, token * heads + column // dims, column % dims))
                for column in columns
            ]
            step.store_group("attended", first + token, head * num_groups + group, vectors)

    def _prefetch(self, head: Expr, sequence: Expr, index: Expr) -> None:
        """Ask for all of the sequence's block `index`: blocks lie apart, where no hardware
        prefetcher follows, and decode reads each of them from memory just once."""
        step = self.step
        block = T.bind(T.cast(step.b["block_tables"][sequence, index], "int64"))
        per_line = CACHE_LINE_BYTES // step.kv.word_dtype.itemsize
        for cache in (step.b["keys"], step.b["values"]):
            rows, columns = (int(size) for size in cache.shape[-2:])
            with T.serial(0, rows * columns // per_line) as line:
                word = line * per_line
                at = (self.layer, head, block, word // columns, word % columns)
                step.kit.prefetch(cache, *at)

    def _token_and_head(self, row: Expr, head: Expr, first: Expr) -> tuple[Expr, Expr]:
        group = self.step.spec.shape.group_size
        return first + row // group, head * group + row % group

    def _tiles(self, num_vectors: int) -> tuple[int, int]:
        """Rows and vectors of the register tile for a product `num_vectors` wide."""
        isa = self.step.kit.isa
        accumulators = isa.num_vector_registers * 3 // 4
        columns = max(c for c in (4, 2, 1) if num_vectors % c == 0 and c <= accumulators // 4)
        return min(self.rows, accumulators // columns), columns

    def _scores(self, state: _State, head: Expr, first: Expr, block: Expr, num_valid: Expr) -> None:
        """scores = QK of one block; row of token t sees `num_valid` + t of its tokens, the rest are
        -inf. Those before its window are far below what any key reaches, but finite: a block may
        have no other keys for a row, and its sums count nothing once a later block has some.
        """
        step, kit, lanes = self.step, self.step.kv_kit, self.step.kv_kit.lanes
        group, words = step.spec.shape.group_size, kit.act_words(step.kv.head_dim_padded)
        cap = step.spec.shape.traits.score_cap

        def product(row: Expr, rows: int, column: int, columns: int) -> None:
            acc = Accumulators(kit, rows, columns)
            acc.clear()

            def query(i: int, word: Expr) -> Expr:
                token, query_head = self._token_and_head(row + i, head, first)
                return step.b["queries"][token, query_head * words + word]

            def multiply(word: Expr) -> None:
                keys = [self._cached("keys", head, block, word, column + j) for j in range(columns)]
                acc.multiply(keys, lambda i: kit.a_operand(lambda w: query(i, w), word))

            total = step.spec.shape.head_dim // step.kv.kr
            k_loop(0, total, total, K_UNROLL, multiply)
            for i in range(rows):
                limit = T.bind(num_valid + (row + i) // group)
                for j, vector in enumerate(acc.row(i)):
                    at = (column + j) * lanes
                    if step.kv.format.has_scales:
                        scales = kit.load(step.b["key_scales"], self.layer, head, block, at)
                        vector = vector * scales
                    if cap:
                        vector = kit.call("sw_tanh", vector) * kit.splat(cap * LOG2_E)
                    masked = kit.call("sw_mask_from", vector, limit - at)
                    if self.window:
                        masked = kit.call("sw_mask_below", masked, limit - self.window - at)
                    kit.store(state.scores, (row + i, at), masked)

        self._each_register_tile(step.kv.block_size // lanes, product)

    def _cached(self, name: str, head: Expr, block: Expr, word: Expr, vector: Expr) -> Expr:
        """A vector of words of keys or values, as products take them."""
        kit = self.step.kv_kit
        at = (self.layer, head, block, word, vector * kit.lanes)
        words = T.bind(kit.load(self.step.b[name], *at))
        return T.bind(kit.call("sw_s8_bf16", words)) if self.step.kv.format.has_scales else words

    def _softmax(self, state: _State, head: Expr, block: Expr) -> None:
        """probabilities = 2**(scores - running maximum), times the scales of values if they have
        some; running sums and the factor for `out` follow. The rows' factors 2**(old - new maximum)
        are taken side by side, in lanes.
        """
        kit, lanes = self.step.kv_kit, self.step.kv_kit.lanes
        num_vectors = self.step.kv.block_size // lanes
        with T.serial(0, self.rows) as row:
            scores = [kit.load(state.scores, row, j * lanes) for j in range(num_vectors)]
            largest = scores[0]
            for vector in scores[1:]:
                largest = T.max(largest, vector)
            previous = T.bind(state.maxima[row])
            maximum = T.bind(T.max(previous, kit.call("sw_hmax", largest)))
            T.buffer_store(state.factors, previous - maximum, [row])
            T.buffer_store(state.maxima, maximum, [row])
        for first in range(0, self.rows, lanes):
            factors = kit.call("sw_exp2", kit.load(state.factors, first))
            kit.store(state.factors, (first,), factors)
        with T.serial(0, self.rows) as row:
            total = kit.load(state.sums, row, 0) * kit.splat(state.factors[row])
            maximum = kit.splat(T.bind(state.maxima[row]))
            for j in range(num_vectors):
                score = kit.load(state.scores, row, j * lanes)
                power = T.bind(kit.call("sw_exp2", score - maximum))
                total = total + power
                if self.step.kv.format.has_scales:
                    at = (self.layer, head, block, j * lanes)
                    scaled = power * kit.load(self.step.b["value_scales"], *at)
                    # where no token is, the scale is whatever another sequence has left
                    power = T.Select(power > kit.zeros(), scaled, power)
                kit.store_act(state.probabilities, row, j * lanes, power)
            kit.store(state.sums, (row, 0), total)

    def _weigh(self, state: _State, head: Expr, block: Expr, num_tokens: Expr) -> None:
        """out = out * factor + probabilities V, over the `num_tokens` tokens of the block that
        exist.
        """
        step, kit, lanes = self.step, self.step.kv_kit, self.step.kv_kit.lanes
        num_words = T.bind((num_tokens + (step.kv.kr - 1)) // step.kv.kr)

        def product(row: Expr, rows: int, column: int, columns: int) -> None:
            acc = Accumulators(kit, rows, columns)
            acc.load(
                lambda i, j: (
                    kit.load(state.out, row + i, (column + j) * lanes)
                    * kit.splat(state.factors[row + i])
                )
            )
            with T.serial(0, num_words) as word:
                values = [
                    self._cached("values", head, block, word, column + j) for j in range(columns)
                ]
                acc.multiply(
                    values, lambda i: kit.a_operand(lambda w: state.probabilities[row + i, w], word)
                )
            for i in range(rows):
                for j, vector in enumerate(acc.row(i)):
                    kit.store(state.out, (row + i, (column + j) * lanes), vector)

        self._each_register_tile(step.kv.head_dim_padded // lanes, product)

    def _each_register_tile(self, num_vectors: int, product: _Product) -> None:
        """Cover rows x vectors with register tiles: a loop over whole ones, then the exact tail of
        rows.
        """
        rows, columns = self._tiles(num_vectors)
        for column in range(0, num_vectors, columns):
            with T.serial(0, self.rows // rows) as i:
                product(i * rows, rows, column, columns)
            if self.rows % rows:
                product(self.rows // rows * rows, self.rows % rows, column, columns)


@dataclass(frozen=True)
class _State:
    """Running values of a tile, on the core's stack."""

    scores: Expr  # float32 (rows, block_size)
    probabilities: Expr  # activation words (rows, block_size)
    out: Expr  # float32 (rows, head_dim_padded)
    maxima: Expr  # float32 (rows,)
    sums: Expr  # float32 (rows, lanes)
    factors: Expr  # float32 (rows,), rounded up to whole vectors

    @staticmethod
    def allocate(tile: _QueryTile) -> _State:
        step, rows = tile.step, tile.rows
        kit, block, dims = step.kv_kit, step.kv.block_size, step.kv.head_dim_padded

        def local(*shape: int, dtype: str = "float32") -> Expr:
            return T.alloc_buffer(shape, dtype, scope="local")

        return _State(
            scores=local(rows, block),
            probabilities=local(rows, kit.act_words(block), dtype=kit.act_dtype),
            out=local(rows, dims),
            maxima=local(rows),
            sums=local(rows, kit.lanes),
            factors=local(round_up(rows, kit.lanes)),
        )

    def reset(self) -> None:
        """The state before the first block."""
        num_rows = self.maxima.shape[0]
        for buffer in (self.out, self.sums):
            with T.serial(0, num_rows) as row, T.serial(0, buffer.shape[1]) as j:
                T.buffer_store(buffer, T.float32(0), [row, j])
        with T.serial(0, num_rows) as row:
            T.buffer_store(self.maxima, T.float32(float("-inf")), [row])
