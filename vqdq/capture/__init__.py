"""What happens inside a model while it draws: layer inputs and attention, as statistics.

Nothing here changes a model. Hooks watch one generation and keep running statistics of bounded
size, so a record of a large model fits in memory and a saved record opens again after a restart.
"""

from __future__ import annotations

from vqdq.capture.along import Along, TrajectoryRecord
from vqdq.capture.attention import (
    cross_attentions,
    joint_attentions,
    record_attention,
    self_attentions,
    text_attentions,
)
from vqdq.capture.attention_record import AttentionRecord
from vqdq.capture.attention_sums import AttentionRecorder
from vqdq.capture.codes import CodesRecord
from vqdq.capture.kept import KeptTensor
from vqdq.capture.pairing import Pairing
from vqdq.capture.prompts import prompt_tokens
from vqdq.capture.record import Recorder, record, watchable
from vqdq.capture.records import ActivationRecord, LayerRecord, LayerSeries
from vqdq.capture.tokens import GROUPS, PromptTokens, Word, tokenize
from vqdq.capture.weights import WeightRecord, WeightRecords, weight_record, weight_records

__all__ = [
    "GROUPS",
    "ActivationRecord",
    "Along",
    "AttentionRecord",
    "AttentionRecorder",
    "CodesRecord",
    "KeptTensor",
    "LayerRecord",
    "LayerSeries",
    "Pairing",
    "PromptTokens",
    "Recorder",
    "TrajectoryRecord",
    "WeightRecord",
    "WeightRecords",
    "Word",
    "cross_attentions",
    "joint_attentions",
    "prompt_tokens",
    "record",
    "record_attention",
    "self_attentions",
    "text_attentions",
    "tokenize",
    "watchable",
    "weight_record",
    "weight_records",
]
