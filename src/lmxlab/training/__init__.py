"""Training: config, schedules, optimizers, the loop with its callbacks, checkpoints and run folders."""

from lmxlab.training.callbacks import (
    Callback,
    EarlyStopping,
    FLOPCounter,
    HardwareMonitor,
    MetricsLogger,
    ThroughputMonitor,
    TimeBudget,
    ValTracker,
    standard_callbacks,
)
from lmxlab.training.checkpoints import load_checkpoint, save_checkpoint
from lmxlab.training.config import TrainConfig
from lmxlab.training.hardware import detect_peak_tflops
from lmxlab.training.metric_callbacks import (
    ActivationStatsCallback,
    AttentionEntropyCallback,
    EffectiveRankCallback,
    GradientStatsCallback,
    LossCurvatureCallback,
    WeightStatsCallback,
)
from lmxlab.training.mtp import MTPHead, MultiTokenPrediction, multi_token
from lmxlab.training.noise_scale import GradientNoiseScaleCallback, gradient_noise_scale
from lmxlab.training.optimizers import create_optimizer, create_schedule
from lmxlab.training.run_folder import RunFolder
from lmxlab.training.trainer import NonFiniteLoss, Trainer

__all__ = [
    "ActivationStatsCallback",
    "AttentionEntropyCallback",
    "Callback",
    "EarlyStopping",
    "EffectiveRankCallback",
    "FLOPCounter",
    "GradientNoiseScaleCallback",
    "GradientStatsCallback",
    "HardwareMonitor",
    "LossCurvatureCallback",
    "MTPHead",
    "MetricsLogger",
    "MultiTokenPrediction",
    "NonFiniteLoss",
    "RunFolder",
    "ThroughputMonitor",
    "TimeBudget",
    "TrainConfig",
    "Trainer",
    "ValTracker",
    "WeightStatsCallback",
    "create_optimizer",
    "create_schedule",
    "detect_peak_tflops",
    "gradient_noise_scale",
    "load_checkpoint",
    "multi_token",
    "save_checkpoint",
    "standard_callbacks",
]
