"""What the machine could do at best, for model FLOP utilisation."""

import mlx.core as mx

# FP32 peaks of Apple GPUs, TFLOP/s, of the largest GPU of each kind: cores x 128 lanes x 2 x clock.
# Architecture strings end in the kind: g base and phone class, s Max (and Pro), d Ultra.
APPLE_PEAK_TFLOPS = {
    "applegpu_g13g": 2.6,  # M1
    "applegpu_g13s": 10.4,  # M1 Max
    "applegpu_g13d": 21.0,  # M1 Ultra
    "applegpu_g14g": 3.6,  # M2
    "applegpu_g14s": 13.6,  # M2 Max
    "applegpu_g14d": 27.2,  # M2 Ultra
    "applegpu_g15g": 4.1,  # M3
    "applegpu_g15s": 14.2,  # M3 Max
    "applegpu_g15d": 28.4,  # M3 Ultra
    "applegpu_g16g": 4.3,  # M4
    "applegpu_g16s": 17.0,  # M4 Max
}


def detect_peak_tflops() -> float | None:
    """FP32 peak of this Apple GPU in TFLOP/s, None when the device is another or unknown."""
    if not mx.metal.is_available():
        return None
    architecture = str(mx.device_info().get("architecture", ""))
    return APPLE_PEAK_TFLOPS.get(architecture)
