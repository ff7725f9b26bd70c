"""What happens inside a model while it draws: layer inputs and cross-attention, as statistics.

Nothing here changes a model. Hooks watch one generation and keep running statistics of bounded
size, so a record of a large model fits in memory and a saved record opens again after a restart.
"""

from __future__ import annotations

from vqdq.capture.along import Along, TrajectoryRecord
from vqdq.capture.attention import AttentionRecorder, cross_attentions, record_attention
from vqdq.capture.attention_record import AttentionRecord
from vqdq.capture.codes import CodesRecord
from vqdq.capture.kept import KeptTensor
from vqdq.capture.pairing import Pairing
from vqdq.capture.record import Recorder, record, watchable
from vqdq.capture.records import ActivationRecord, LayerRecord, LayerSeries
from vqdq.capture.tokens import GROUPS, PromptTokens, Word, tokenize
from vqdq.capture.weights import WeightRecord, weight_record

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
    "Word",
    "cross_attentions",
    "record",
    "record_attention",
    "tokenize",
    "watchable",
    "weight_record",
]
