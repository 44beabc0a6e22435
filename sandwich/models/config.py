"""What a model's settings say, as one frozen value; refuses what is not supported.

Reads the keys of `config.json` as transformers 4 and 5 write them, and of `generation_config.json`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from codegen.spec import Activation, ModelShape
from sandwich.checkpoint.fields import Fields
from sandwich.checkpoint.quantized.methods import read_method
from sandwich.checkpoint.source import ModelSource
from sandwich.models import llama
from sandwich.models.families import family_of
from sandwich.models.family import ACTIVATIONS, OtherRotation, Switches
from sandwich.models.rope import UNROTATED, RopeConfig, head_order, read_rope, read_ropes
from sandwich.models.stored import FLOATS, StoredFormats, stored_formats
from sandwich.models.tensors import TensorNames
from sandwich.models.tied import has_own_head

DTYPES = ("float32", "float16", "bfloat16")

_MAX_LAYERS = 1024  # the deepest models have 126; a damaged file may claim billions


@dataclass(frozen=True)
class ModelConfig:
    """A model: sizes, switches, position embedding, special tokens."""

    name: str  # of the folder, file or preset
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    switches: Switches = field(default_factory=Switches)
    tie_word_embeddings: bool = False
    rope: RopeConfig = field(default_factory=RopeConfig)
    more_ropes: tuple[RopeConfig, ...] = ()  # of layers that rotate by other tables
    names: TensorNames = llama.NAMES  # what the checkpoint calls its tensors
    dtype: str | None = None  # what the checkpoint says it is stored in
    stored: StoredFormats = FLOATS  # of matrices that are quantised in the checkpoint
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @property
    def max_context_len(self) -> int:
        """The longest sequence the model was made for, in tokens."""
        rope, longest = self.rope, self.max_position_embeddings
        if rope.rope_type == "yarn":
            return max(longest, int(rope.original_max_position_embeddings * rope.factor))
        is_stretched = rope.rope_type == "linear" and not self.more_ropes
        return int(longest * rope.factor) if is_stretched else longest

    @property
    def ropes(self) -> tuple[RopeConfig, ...]:
        """The parameters of every table of rotations."""
        return (self.rope, *self.more_ropes)

    def shape(self, max_model_len: int) -> ModelShape:
        """What the kernels need to know, for sequences of up to `max_model_len` tokens."""
        return ModelShape(
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            intermediate_size=self.intermediate_size,
            vocab_size=self.vocab_size,
            rms_norm_eps=self.rms_norm_eps,
            qkv_bias=self.switches.qkv_bias,
            o_bias=self.switches.o_bias,
            mlp_bias=self.switches.mlp_bias,
            tied_embeddings=self.tie_word_embeddings,
            max_model_len=max_model_len,
            traits=self.switches.traits,
        )

    @staticmethod
    def from_source(source: ModelSource) -> ModelConfig:
        """The configuration of the model in `source`.

        `tie_word_embeddings` is false if the checkpoint holds an LM head of its own.

        Raises:
            ModelError: it is missing, damaged, or asks for something not supported.
        """
        config = _read_config(source.config(), source.name)
        if config.tie_word_embeddings and has_own_head(source):
            config = dataclasses.replace(config, tie_word_embeddings=False)
        # transformers stops at the ids of generation_config.json where it names any.
        eos_ids = source.generation().token_ids("eos_token_id")
        config = dataclasses.replace(config, eos_token_ids=eos_ids or config.eos_token_ids)
        if not source.has_tensors:
            return config
        shape = config.shape(config.max_position_embeddings)
        return dataclasses.replace(
            config, stored=stored_formats(source.checkpoint(), shape, config.names)
        )


def _read_config(fields: Fields, name: str) -> ModelConfig:
    family = family_of(fields)
    switches = family.read(fields)
    _refuse_unsupported(fields, switches.traits.activation)
    hidden_size = fields.integer("hidden_size")
    num_heads = fields.integer("num_attention_heads")
    max_positions = fields.integer("max_position_embeddings", default=2048)
    bos_ids = fields.token_ids("bos_token_id")
    ropes = _read_ropes(fields, max_positions, switches)
    head_dim = _read_head_dim(fields, hidden_size, num_heads)
    _check_rotation(fields, ropes[0], head_dim)
    # The residual stream over the scale: norms take the scale out again, but for their epsilon.
    traits = switches.traits
    residual = dataclasses.replace(
        traits, embedding_scale=traits.embedding_scale / switches.residual_scale
    )
    return ModelConfig(
        name=name,
        num_layers=fields.integer("num_hidden_layers", maximum=_MAX_LAYERS),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=_read_num_kv_heads(fields, num_heads),
        head_dim=head_dim,
        intermediate_size=fields.integer("intermediate_size"),
        vocab_size=fields.integer("vocab_size"),
        max_position_embeddings=max_positions,
        rms_norm_eps=fields.number("rms_norm_eps", default=1e-6) / switches.residual_scale**2,
        switches=dataclasses.replace(switches, traits=residual),
        names=dataclasses.replace(
            family.names,
            head_order=head_order(ropes[0], head_dim, switches.is_interleaved),
        ),
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=family.is_tied),
        rope=ropes[0],
        more_ropes=ropes[1:],
        dtype=_read_dtype(fields),
        bos_token_id=bos_ids[0] if bos_ids else None,
        eos_token_ids=fields.token_ids("eos_token_id"),
    )


def _read_ropes(fields: Fields, max_positions: int, switches: Switches) -> tuple[RopeConfig, ...]:
    """The parameters of every table of rotations."""
    if switches.traits.num_rotations == 1:
        return (read_rope(fields, max_positions, switches.partial_rotary),)
    if switches.other_rotation is OtherRotation.NONE:
        return read_rope(fields, max_positions, switches.partial_rotary), UNROTATED
    return read_ropes(fields, max_positions, switches.local_theta)


def _check_rotation(fields: Fields, rope: RopeConfig, head_dim: int) -> None:
    """ModelError unless whole pairs of dims are rotated, each by a divisor of its own."""
    dims = rope.rotated_dims(head_dim)
    if dims < 2 or dims % 2:
        raise fields.error(
            "partial_rotary_factor", f"{dims} of {head_dim} dims would be rotated; pairs are needed"
        )
    for divisors in (rope.short, rope.long):
        if divisors and len(divisors) != dims // 2:
            raise fields.error(
                "rope_scaling", f"{dims // 2} factors are needed, one for each pair of dims"
            )


def _refuse_unsupported(fields: Fields, activation: Activation) -> None:
    names = ACTIVATIONS[activation]
    fields.choice("hidden_act", names, default=names[0])
    read_method(fields)  # refuses what is not read


def _read_num_kv_heads(fields: Fields, num_heads: int) -> int:
    num_kv_heads = fields.integer("num_key_value_heads", default=num_heads)
    if num_heads % num_kv_heads:
        raise fields.error(
            "num_key_value_heads", f"it must divide num_attention_heads, which is {num_heads}"
        )
    return num_kv_heads


def _read_head_dim(fields: Fields, hidden_size: int, num_heads: int) -> int:
    if not fields.has("head_dim") and hidden_size % num_heads:
        raise fields.error(
            "hidden_size",
            f"without head_dim it must be a multiple of num_attention_heads, which is {num_heads}",
        )
    head_dim = fields.integer("head_dim", default=hidden_size // num_heads)
    if head_dim % 2:
        raise fields.error(
            "head_dim", f"dims are rotated in pairs, which {head_dim} does not allow"
        )
    return head_dim


def _read_dtype(fields: Fields) -> str | None:
    """transformers 5 writes `dtype`, transformers 4 `torch_dtype`."""
    key = "dtype" if fields.has("dtype") else "torch_dtype"
    return fields.choice(key, DTYPES, default="") or None
