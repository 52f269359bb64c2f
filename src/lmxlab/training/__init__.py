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
from lmxlab.training.curriculum import difficulty_curriculum, length_curriculum
from lmxlab.training.distillation import distillation_loss, soft_target_loss
from lmxlab.training.dpo import DPO, dpo_loss, with_reference
from lmxlab.training.grpo import GRPO, grpo_loss
from lmxlab.training.grpo_trainer import GRPOConfig, GRPOTrainer, Rollouts
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
    "DPO",
    "GRPO",
    "ActivationStatsCallback",
    "AttentionEntropyCallback",
    "Callback",
    "EarlyStopping",
    "EffectiveRankCallback",
    "FLOPCounter",
    "GRPOConfig",
    "GRPOTrainer",
    "GradientNoiseScaleCallback",
    "GradientStatsCallback",
    "HardwareMonitor",
    "LossCurvatureCallback",
    "MTPHead",
    "MetricsLogger",
    "MultiTokenPrediction",
    "NonFiniteLoss",
    "Rollouts",
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
    "difficulty_curriculum",
    "distillation_loss",
    "dpo_loss",
    "gradient_noise_scale",
    "grpo_loss",
    "length_curriculum",
    "load_checkpoint",
    "multi_token",
    "save_checkpoint",
    "soft_target_loss",
    "standard_callbacks",
    "with_reference",
]
