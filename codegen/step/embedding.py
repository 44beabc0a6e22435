"""The first operator: token ids become rows of the residual stream.

Where embeddings are tied they are read out of a matrix's panels, so this file knows how a value
lies in a word of every format.
"""

from __future__ import annotations

from collections.abc import Callable

from codegen.cores.parallel import split
from codegen.kit import Expr, T
from codegen.layout.panels import PanelLayout
from codegen.spec import WeightFormat
from codegen.step.step import Step


def embed(step: Step, core: Expr, role: str) -> None:
    """x[t, :] = the embedding of token t times its scale, from the row-major table `role` or, if
    that is a matrix, out of its panels.
    """
    begin, end = split(core, step.spec.num_shares, step.num_tokens)
    if role not in step.model.matrices:
        read_row = _row_of_table
    else:
        is_quantized = step.model.panels(role).format.is_quantized
        read_row = _row_of_codes if is_quantized else _row_of_panels
    with T.serial(begin, end) as token:
        read_row(step, role, T.bind(step.b["token_ids"][token]), token)


def _store(step: Step, token: Expr, column: Expr, value: Expr) -> None:
    """x = value times the embedding's scale"""
    scale = step.spec.shape.traits.embedding_scale
    T.buffer_store(
        step.b["x"], value if scale == 1.0 else value * T.float32(scale), [token, column]
    )


def _row_of_table(step: Step, role: str, token_id: Expr, token: Expr) -> None:
    with T.serial(0, step.spec.shape.hidden_size) as d:
        value = step.b[role][token_id, d]
        if step.kit.kr == 2:
            value = T.reinterpret("float32", T.cast(value, "int32") << 16)
        _store(step, token, d, value)


def _row_of_panels(step: Step, role: str, token_id: Expr, token: Expr) -> None:
    layout = step.model.panels(role)
    word_at = _column(layout, token_id, layout.k_words)
    with T.serial(0, layout.k_words) as k_word:
        word = T.bind(step.b[role][word_at(k_word)])
        if layout.kr == 1:
            _store(step, token, k_word, word)
        else:
            _store(step, token, k_word * 2, T.reinterpret("float32", word << 16))
            _store(step, token, k_word * 2 + 1, T.reinterpret("float32", word & -65536))


def _row_of_codes(step: Step, role: str, token_id: Expr, token: Expr) -> None:
    """x = (code - zero point) * scale + minimum, of a quantised matrix."""
    layout, b = step.model.panels(role), step.b
    word_at = _column(layout, token_id, layout.k_words)
    scale_at = _column(layout, token_id, layout.num_groups)
    with T.serial(0, layout.num_groups) as group:
        at = T.bind(scale_at(group))
        scale = T.bind(_scale(layout.format, b[role + "_scales"][at]))
        zero = layout.format.zero_code
        if layout.format.has_zero_points:
            zero = T.bind(T.cast(b[role + "_zero_points"][at], "int32"))
        minimum = None
        if layout.format.has_minima:
            minimum = T.bind(_scale(layout.format, b[role + "_minima"][at]))

        def store(k_word: Expr, num_values: int) -> None:
            word = T.bind(T.cast(b[role][word_at(k_word)], "int32"))
            for i in range(num_values):
                value = T.cast(_code(layout.format, word, i) - zero, "float32") * scale
                if minimum is not None:
                    value = value + minimum
                _store(step, token, k_word * layout.kr + i, value)

        whole, rest = divmod(layout.k, layout.kr)
        begin = T.bind(group * layout.group_words)
        with T.serial(begin, T.min(begin + layout.group_words, whole)) as k_word:
            store(k_word, layout.kr)
        if rest:
            with T.If(group == layout.num_groups - 1), T.Then():
                store(whole, rest)


def _column(layout: PanelLayout, row: Expr, per_column: int) -> Callable[[Expr], Expr]:
    """Where the elements of the matrix's row `row` lie in an array of `per_column` for each."""
    panel = T.bind(row // layout.panel)
    width = T.bind(T.min(layout.panel, layout.n_padded - panel * layout.panel))
    base = T.cast(panel, "int64") * (layout.panel * per_column) + row % layout.panel
    first = T.bind(base)
    return lambda index: first + index * width


def _code(weights: WeightFormat, word: Expr, i: int) -> Expr:
    """Code i of a word, as PanelLayout.pack_rows puts it there, int32."""
    if weights.dtype == "int8":
        byte = (word >> (8 * i)) & 0xFF
        return byte if weights.has_int8_activations else byte ^ 0x80
    if weights.has_int8_activations:
        return (word >> (i % 4 * 8 + i // 4 * 4)) & 0xF
    return (word >> (i % 2 * 16 + i // 2 * 4)) & 0xF


def _scale(weights: WeightFormat, stored: Expr) -> Expr:
    """A scale or minimum as float32."""
    match weights.scale_dtype:
        case "float16":  # as the intrinsic sw_widen_f16 does it
            bits = T.bind(T.cast(stored, "int32"))
            magnitude = T.reinterpret("float32", (bits & 0x7FFF) << 13) * T.float32(2.0**112)
            return T.Select((bits & 0x8000) == 0, magnitude, -magnitude)
        case "bfloat16":
            return T.reinterpret("float32", T.cast(stored, "int32") << 16)
    return stored
