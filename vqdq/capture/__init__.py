"""What happens inside a model while it draws: layer inputs and cross-attention, as statistics.

Nothing here changes a model. Hooks watch one generation and keep running statistics of bounded
size, so a record of a large model fits in memory and a saved record opens again after a restart.
"""

from __future__ import annotations

from vqdq.capture.attention import AttentionRecorder, cross_attentions, record_attention
from vqdq.capture.attention_record import AttentionRecord
from vqdq.capture.record import Recorder, record, watchable
from vqdq.capture.records import ActivationRecord, LayerRecord
from vqdq.capture.tokens import GROUPS, PromptTokens, Word, tokenize

__all__ = [
    "GROUPS",
    "ActivationRecord",
    "AttentionRecord",
    "AttentionRecorder",
    "LayerRecord",
    "PromptTokens",
    "Recorder",
    "Word",
    "cross_attentions",
    "record",
    "record_attention",
    "tokenize",
    "watchable",
]
