"""Reading a Hugging Face config.json: a field that changes the computation is read or refused, never passed over."""

from typing import Any

from lmxlab.core.rope_scaling import RopeScaling
from lmxlab.errors import UserError

# Fields of other families that change the computation; a value that is not falsy means another model.
FOREIGN = (
    "attn_logit_softcapping",
    "attention_multiplier",
    "embedding_multiplier",
    "final_logit_softcapping",
    "kv_lora_rank",
    "logits_scaling",
    "num_experts",
    "num_local_experts",
    "no_rope_layers",
    "quantization_config",
    "residual_multiplier",
    "sliding_window",
    "use_qk_norm",
)


class HFConfig:
    """A config.json's fields, with the questions that the families ask of them; `null` counts as absent."""

    def __init__(self, fields: dict[str, Any]):
        self.fields = {key: value for key, value in fields.items() if value is not None}
        self.model_type = str(self.fields.get("model_type", "unknown"))
        for name in FOREIGN:
            if self.fields.get(name):
                raise UserError(f"Unsupported field in a {self.model_type} config: {name} = {self.fields[name]!r}")

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    def get(self, name: str, default: Any) -> Any:
        return self.fields.get(name, default)

    def require(self, *names: str) -> None:
        """Raises UserError naming the fields that are not there."""
        missing = [name for name in names if name not in self.fields]
        if missing:
            raise UserError(f"The {self.model_type} config is missing required fields: {missing}")

    def refuse_unless(self, **expected: Any) -> None:
        """Raises UserError if a field that is there has another value than the one that is built."""
        for name, value in expected.items():
            if self.get(name, value) != value:
                raise UserError(
                    f"Unsupported value in a {self.model_type} config: {name} = {self[name]!r}; only {value!r} is built"
                )

    def choose(self, name: str, table: dict[str, str], default: str) -> str:
        """What `table` says for the field's value; UserError if it says nothing."""
        value = self.get(name, default)
        if value not in table:
            raise UserError(
                f"Unsupported value in a {self.model_type} config: {name} = {value!r}; one of {sorted(table)} is built"
            )
        return table[value]


def rope_from_hf(hf: HFConfig, max_seq_len: int) -> tuple[float, RopeScaling | None]:
    """(rope_theta, scaling) from either layout: `rope_parameters`, or `rope_theta` beside `rope_scaling`."""
    rope = dict(hf.get("rope_parameters", None) or hf.get("rope_scaling", {}))
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    rope.pop("type", None)
    theta = float(rope.pop("rope_theta", hf.get("rope_theta", 10000.0)))
    if rope.pop("partial_rotary_factor", hf.get("partial_rotary_factor", 1.0)) != 1.0:
        raise UserError(f"Unsupported field in a {hf.model_type} config: partial_rotary_factor")
    original = rope.pop("original_max_position_embeddings", None)
    rope = {key: value for key, value in rope.items() if value is not None}
    if kind == "default":
        return theta, None
    # The dynamic kind is defined by the config's own context, the others by the pre-training one.
    original = max_seq_len if kind == "dynamic" else hf.get("original_max_position_embeddings", original) or max_seq_len
    known = {
        "linear": {"factor"},
        "dynamic": {"factor"},
        "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
        "yarn": {"factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"},
    }
    if kind not in known:
        raise UserError(f"Unsupported rope type {kind!r} in a {hf.model_type} config; built are {sorted(known)}")
    foreign = sorted(set(rope) - known[kind])
    if foreign:
        raise UserError(f"Unsupported fields of rope type {kind!r} in a {hf.model_type} config: {foreign}")
    if kind == "yarn":
        rope.setdefault("factor", max_seq_len / original)
    if "factor" not in rope:
        raise UserError(f"The {hf.model_type} config is missing required fields of rope type {kind!r}: ['factor']")
    return theta, RopeScaling(kind, original_max_seq_len=None if kind == "linear" else original, **rope)
