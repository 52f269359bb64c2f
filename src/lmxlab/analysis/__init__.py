"""A look inside: activations, attention maps, probes, the logit lens, activation patching; `plotting` draws."""

from lmxlab.analysis.activations import PLACES, ActivationCapture, replacing
from lmxlab.analysis.attention import AttentionMaps, attention_weights, extract_attention_maps
from lmxlab.analysis.gradients import gradient_norms
from lmxlab.analysis.logit_lens import LogitLens, logit_lens
from lmxlab.analysis.patching import logit_difference, patch_heads, patch_positions
from lmxlab.analysis.probing import (
    LinearProbe,
    ProbeResult,
    control_labels,
    probe_accuracy,
    probe_layers,
    train_probe,
)

__all__ = [
    "PLACES",
    "ActivationCapture",
    "AttentionMaps",
    "LinearProbe",
    "LogitLens",
    "ProbeResult",
    "attention_weights",
    "control_labels",
    "extract_attention_maps",
    "gradient_norms",
    "logit_difference",
    "logit_lens",
    "patch_heads",
    "patch_positions",
    "probe_accuracy",
    "probe_layers",
    "replacing",
    "train_probe",
]
