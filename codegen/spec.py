"""The values that say what to generate: phases, model shapes, tiles. Nothing here knows TVM."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from enum import StrEnum


class Phase(StrEnum):
    """The two phases of a forward step; each has a plan and a program of its own."""

    PREFILL = "prefill"
    DECODE = "decode"


MOST_SHARES = 64  # of an operator on all cores, as long as that leaves each core two of them
MOST_SHARES_PER_CORE, FEWEST_SHARES_PER_CORE = 8, 2


@dataclass(frozen=True)
class Cut:
    """Into how many shares work is cut: `per_core` for each core, one after the other."""

    num_cores: int
    per_core: int = 1

    @staticmethod
    def of_step(num_cores: int) -> Cut:
        """That of an operator of a step; all of it is one share on one core."""
        if num_cores == 1:
            return Cut(1)
        wanted = min(MOST_SHARES_PER_CORE, MOST_SHARES // num_cores)
        return Cut(num_cores, max(wanted, FEWEST_SHARES_PER_CORE))

    @property
    def num_shares(self) -> int:
        """All of them."""
        return self.num_cores * self.per_core


# Numbers of cores that work together, by NUMA node and, in it, by LLC group: ((4, 4), (4, 4)) is
# two nodes of two groups.
Groups = tuple[tuple[int, ...], ...]


def num_cores(groups: Groups) -> int:
    """Cores in all groups."""
    return sum(map(sum, groups))


class HeadNorm(StrEnum):
    """What of the queries, and of the keys, a norm takes together before they are rotated."""

    NONE = "none"  # there is no norm
    HEAD = "head"  # each head
    ROW = "row"  # all heads of a token


class NormPlace(StrEnum):
    """Where attention and MLP have norms: on what they are given, on what they give, or on both."""

    BEFORE = "before"
    AFTER = "after"
    AROUND = "around"


class Activation(StrEnum):
    """What the gate of an MLP goes through."""

    SILU = "silu"  # x * sigmoid(x)
    GELU_TANH = "gelu_tanh"  # GELU (arXiv 1606.08415) by its approximation with tanh


@dataclass(frozen=True)
class Experts:
    """MLPs of which a router chooses some for each token (Shazeer et al., arXiv 1701.06538).

    count: of them in a layer. per_token: chosen, those of the largest logits, the lower number
    among equals. size: values between the matrices of one. is_normalised: the shares of those that
    are chosen add up to one; else they are what a softmax of all logits gives them.
    """

    count: int
    per_token: int
    size: int
    is_normalised: bool = True


@dataclass(frozen=True)
class LayerKind:
    """What sets some layers of a model apart from others.

    window: keys that a token sees, its own and those just before it; 0 for all. rotation: which of
    the model's tables of rotations queries and keys are rotated by.
    """

    window: int = 0
    rotation: int = 0


@dataclass(frozen=True)
class Traits:
    """In what the text of a model differs from that of Llama; by default in nothing.

    kinds: of the layers in order, from the first again where they are fewer. embedding_scale: rows
    of the embedding are times it. score_scale: products of queries and keys are times it; 0 for
    one over the root of head_dim. score_cap, logit_cap: soft caps of these products and of logits,
    which become cap * tanh(x / cap); 0 for none. experts: in the place of one MLP, None for that.
    logit_scale: logits are times it, which the packed weights of the last norm take over.
    """

    kinds: tuple[LayerKind, ...] = (LayerKind(),)
    head_norm: HeadNorm = HeadNorm.NONE
    norms: NormPlace = NormPlace.BEFORE
    activation: Activation = Activation.SILU
    embedding_scale: float = 1.0
    score_scale: float = 0.0
    score_cap: float = 0.0
    logit_cap: float = 0.0
    experts: Experts | None = None
    logit_scale: float = 1.0

    @property
    def num_rotations(self) -> int:
        """Tables of rotations that the layers need."""
        return 1 + max(kind.rotation for kind in self.kinds)


@dataclass(frozen=True)
class ModelShape:
    """What a model computes: sizes and switches, no weights, no names."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    tied_embeddings: bool
    max_model_len: int
    traits: Traits = field(default_factory=Traits)

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """The kind of each layer."""
        given = self.traits.kinds
        return tuple(given[layer % len(given)] for layer in range(self.num_layers))

    @property
    def score_scale(self) -> float:
        """What products of queries and keys are times."""
        return self.traits.score_scale or 1 / self.head_dim**0.5

    @property
    def group_size(self) -> int:
        """Query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads


GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class WeightFormat:
    """How a matrix is stored and what it is multiplied with; ValueError for one that is not made.

    dtype: "float32", "bfloat16", "int8" or "int4". activations: "float" (bf16 pairs where the ISA
    multiplies bf16, else float32) or "int8" (rounded on the fly). group: values of K that share a
    scale, 0 for one scale per output channel. scale_dtype: "float32", "bfloat16" or "float16".
    has_zero_points: a code of zero for each scale. has_minima: a float for each scale, of its
    dtype, which is added to the scaled code (Q4_1, Q4_K and Q5_K of GGUF); for groups alone. All
    but dtype are for int8 and int4.
    """

    dtype: str
    activations: str = "float"
    group: int = 0
    scale_dtype: str = "float32"
    has_zero_points: bool = False
    has_minima: bool = False

    def __post_init__(self) -> None:
        choices = {
            "dtype": ("float32", "bfloat16", "int8", "int4"),
            "activations": ("float", "int8"),
            "group": (0, *GROUP_SIZES),
            "scale_dtype": ("float32", "bfloat16", "float16"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it is one of {allowed}")
        plain = ("float", 0, "float32", False, False)
        if not self.is_quantized and astuple(self)[1:] != plain:
            raise ValueError(f"{self}: only int8 and int4 weights have scales and int8 activations")
        if self.has_minima and (self.has_zero_points or not self.group):
            raise ValueError(f"{self}: minima are of groups, and in the place of zero points")

    @property
    def bits(self) -> int:
        """Bits of one weight."""
        return {"float32": 32, "bfloat16": 16, "int8": 8, "int4": 4}[self.dtype]

    @property
    def is_quantized(self) -> bool:
        """Whether weights are codes with scales."""
        return self.dtype in ("int8", "int4")

    @property
    def has_int8_activations(self) -> bool:
        """Whether products are of integers."""
        return self.activations == "int8"

    @property
    def zero_code(self) -> int:
        """The code that a scale adds nothing for, where no zero point says it."""
        return 0 if self.has_minima else 1 << (self.bits - 1)

    @property
    def code_range(self) -> tuple[int, int]:
        """The least and the greatest code that values are rounded to: those of symmetric bytes are
        symmetric.
        """
        is_symmetric = not (self.has_zero_points or self.has_minima)
        return int(self.bits == 8 and is_symmetric), 2**self.bits - 1

    @property
    def name(self) -> str:
        """For people: "bfloat16", "int8 x float", "int4-g32 x int8"."""
        if not self.is_quantized:
            return self.dtype
        group = f"-g{self.group}" if self.group else ""
        kind = "-zp" if self.has_zero_points else "-min" if self.has_minima else ""
        return f"{self.dtype}{group}{kind} x {self.activations}"


_LOWEST = {
    "mr": 1,
    "kc": 0,
    "k_unroll": 1,
    "prefetch_bytes": 0,
    "nv": 0,
    "block_prefetch": 0,
    "row_parts": 1,
    "chains": 1,
}
# How a core goes through its part of C (codegen.gemm.walk), and the rows of a block of it for every
# column of a panel (benchmark: docs/tuning.md).
LOOP_ORDERS = ("panels", "rows", "curve")
BLOCK_ASPECT = 2


@dataclass(frozen=True)
class GemmTile:
    """The schedule of a GEMM for a range of rows; ValueError for impossible sizes.

    mr: rows of the register tile. kc: values of K per block, 0 for all of them. k_unroll: weight
    words per turn of the innermost loop. prefetch_bytes: distance of the software prefetch of
    weights, 0 for none. nv: vectors of columns of the register tile, 0 for the whole panel.
    is_widened: weights that products do not take as they are packed are unpacked once for all
    rows, a K block of a panel at a time, instead of once for each register tile. block_prefetch:
    row tiles that share the prefetch of the next K block into L2, 0 for none; two blocks must fit.
    row_parts: parts of M that different cores take; the cores are a grid of these parts and groups
    of panels. Taken as one where it does not divide the cores. order: of LOOP_ORDERS, how a core
    goes through its part of C. chains: sets of sums of a register tile, which products of integers
    go to in turn and which are added at the end, so that few sums do not wait for each other; taken
    as one for floats, whose additions have one order.
    """

    mr: int
    kc: int = 0
    k_unroll: int = 1
    prefetch_bytes: int = 0
    nv: int = 0
    is_widened: bool = False
    block_prefetch: int = 0
    row_parts: int = 1
    order: str = "panels"
    chains: int = 1

    def __post_init__(self) -> None:
        for name, low in _LOWEST.items():
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise ValueError(f"{name} is {value!r}; it is a whole number from {low} on")
        if type(self.is_widened) is not bool:
            raise ValueError(f"is_widened is {self.is_widened!r}; it is True or False")
        if self.order not in LOOP_ORDERS:
            raise ValueError(f"order is {self.order!r}; it is one of {LOOP_ORDERS}")


# The tiles of a GEMM by its number of rows: (most rows, tile) in ascending order. The first that
# reaches the number is taken, and the last one for everything above.
TileRanges = tuple[tuple[int, GemmTile], ...]


def check_ranges(ranges: TileRanges) -> None:
    """ValueError if `ranges` is empty or does not ascend from at least one row."""
    bounds = [rows for rows, _ in ranges]
    if not bounds or bounds != sorted(set(bounds)) or bounds[0] < 1:
        raise ValueError(f"tiles end at rows {bounds}; they must be one or more and ascend from 1")


# What a wanted row of logits has in place of a token to score, besides its argmax.
ANY_TOKEN = -1  # the sum of the distribution and the likeliest tokens, no token in particular
NOT_SCORED = -2  # nothing
MAX_TOP = 20  # likeliest tokens of a scored row
# Parts of the vocabulary whose probabilities are summed apart, whatever the number of cores, so
# that programs of one core and of many give the same bits.
SCORE_PARTS = 32


@dataclass(frozen=True)
class StepLimits:
    """The largest step a program takes; every buffer of a program is this large.

    max_num_logits: rows of logits that are in memory together; more of them come block by block.
    `num_blocks` of `block_size` tokens are in the KV cache, at most `max_blocks_per_seq` of them
    one sequence's.
    """

    max_num_tokens: int
    max_num_seqs: int
    max_num_logits: int
    max_blocks_per_seq: int
    num_blocks: int
    block_size: int


@dataclass(frozen=True)
class ProgramSpec:
    """Everything a phase program depends on; its repr is the program's key in the cache.

    dtype: of activations, and of weights that are not quantised. panel: columns of a weight panel.
    tiles: (role, ranges) for every matrix of the model. query_tile: tokens of one sequence that
    share a pass over its keys and values. groups: the cores that run it. weights, lm_head: the
    formats of the layers' matrices and of the LM head; None for plain `dtype`.
    """

    phase: Phase
    shape: ModelShape
    isa: str
    dtype: str
    kv_dtype: str
    panel: int
    limits: StepLimits
    groups: Groups
    tiles: tuple[tuple[str, TileRanges], ...]
    query_tile: int
    has_timers: bool = False
    weights: WeightFormat | None = None
    lm_head: WeightFormat | None = None

    @property
    def num_cores(self) -> int:
        """Cores that run the program."""
        return num_cores(self.groups)

    @property
    def cut(self) -> Cut:
        """How the work of an operator is cut."""
        return Cut.of_step(self.num_cores)

    @property
    def num_shares(self) -> int:
        """Shares that the work of an operator is cut into."""
        return self.cut.num_shares

    def ranges(self, role: str) -> TileRanges:
        """The tiles of `role`."""
        return dict(self.tiles)[role]
