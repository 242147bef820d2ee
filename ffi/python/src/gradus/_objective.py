"""Settings of the policy loss by name, and the weights of sequences."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gradus import _call, _sys
from gradus._library import LIBRARY, done


class Preset(NamedTuple):
    """What `policy_preset` gives: settings for `policy_loss`, the rest for `seq_weights`."""

    settings: _sys.policy_settings
    aggregation: int
    count_empty: bool
    value: float

    def weights(self, lengths: Sequence[int]) -> np.ndarray:
        """f64 [B] of sequences with `lengths` scored tokens."""
        return seq_weights(self.aggregation, lengths, self.count_empty, self.value)


def policy_preset(name: str, length: float = 0.0) -> Preset:
    """Settings and aggregation by name: "grpo", "dr_grpo", "dapo", "gspo", "cispo", "reft", "relift",
    "trl/LOSS_TYPE", "verl/LOSS". `length` is the longest completion, which some read as a constant."""
    settings = _call.init(_call.op_of("policy_loss")).settings
    aggregation, empty, value = ctypes.c_int32(), ctypes.c_int32(), ctypes.c_double()
    done(
        LIBRARY.gradus_policy_preset(
            name.encode(),
            length,
            ctypes.byref(settings),
            ctypes.byref(aggregation),
            ctypes.byref(empty),
            ctypes.byref(value),
        )
    )
    return Preset(settings, aggregation.value, bool(empty.value), value.value)


def seq_weights(
    aggregation: int | str, lengths: Sequence[int], count_empty: bool = True, value: float = 0.0
) -> np.ndarray:
    """f64 [B]: weights of sequences with `lengths` scored tokens. `value`: tokens of TOKEN_MEAN_OF, length of
    CONSTANT. count_empty: whether sequences without a scored token count in B (TRL yes, verl no)."""
    if isinstance(aggregation, str):
        aggregation = _call.constant("seq_weights", "aggregation", aggregation)
    sizes = np.ascontiguousarray(lengths, np.int64)
    weights = np.empty(len(sizes), np.float64)
    done(
        LIBRARY.gradus_seq_weights(
            aggregation,
            int(count_empty),
            value,
            sizes.ctypes.data_as(ctypes.POINTER(ctypes.c_int64)),
            len(sizes),
            weights.ctypes.data_as(ctypes.POINTER(ctypes.c_double)),
        )
    )
    return weights


def struct(name: str, **fields: Any) -> Any:
    """A struct of the header with an op's defaults and `fields` over them: `policy_settings`,
    `logit_transform`, `adamw_settings`."""
    op, field = {
        "policy_settings": ("policy_loss", "settings"),
        "logit_transform": ("logprob", "transform"),
        "adamw_settings": ("adamw", "settings"),
    }[name]
    binding = _call.Binding(_call.op_of(op))
    binding.assign(binding.args, field, fields)
    made = getattr(binding.args, field)
    return type(made).from_buffer_copy(made)
