"""Settings of the policy loss by name, and the weights of sequences."""

from __future__ import annotations

import ctypes
import operator
from typing import Any, NamedTuple

import numpy as np

from gradus import _error, _fields, _sys
from gradus._library import LIBRARY, done

__all__ = ["Preset", "filled", "policy_preset", "seq_weights", "struct"]

# Ops whose defaults a struct has.
HOLDERS = {
    "policy_settings": ("policy_loss", "settings"),
    "logit_transform": ("logprob", "transform"),
    "adamw_settings": ("adamw", "settings"),
}


class Preset(NamedTuple):
    """What `policy_preset` gives: settings for `policy_loss`, the rest for `seq_weights`."""

    settings: _sys.policy_settings
    aggregation: int
    count_empty: bool
    value: float

    def weights(self, lengths: Any) -> np.ndarray:
        """f64 [B] of sequences with `lengths` scored tokens: a list, an array or a tensor on the CPU."""
        return seq_weights(self.aggregation, lengths, self.count_empty, self.value)


def policy_preset(name: str, length: float = 0.0) -> Preset:
    """Settings and aggregation by name: "grpo", "deepseekmath_grpo", "dr_grpo", "dapo", "gspo", "cispo", "reft", "relift",
    "remix", "prefix_rft", "ce", "trl/LOSS_TYPE", "verl/LOSS". `length` is the longest completion, which some read as a constant."""
    settings = type(_fields.op_of("policy_loss").defaults.settings).from_buffer_copy(
        _fields.op_of("policy_loss").defaults.settings
    )
    aggregation, empty, value = ctypes.c_int32(), ctypes.c_int32(), ctypes.c_double()
    given = (_error.text("policy_preset", "name", name), _error.number("policy_preset", "length", length))
    outputs = (ctypes.byref(x) for x in (settings, aggregation, empty, value))
    try:
        done(LIBRARY.gradus_policy_preset(*given, *outputs))
    except _error.ConfigError as error:
        # The library names the key of a run's configuration.
        raise _error.ConfigError(f"policy_preset: argument `name`: {error.message.partition(': ')[2]}") from None
    return Preset(settings, aggregation.value, bool(empty.value), value.value)


def seq_weights(aggregation: int | str, lengths: Any, count_empty: bool = True, value: float = 0.0) -> np.ndarray:
    """f64 [B]: weights of sequences with `lengths` scored tokens. `value`: tokens of TOKEN_MEAN_OF, length of
    CONSTANT. count_empty: whether sequences without a scored token count in B (TRL yes, verl no)."""
    if isinstance(aggregation, str):
        aggregation = _fields.constant("seq_weights", "aggregation", aggregation)
    given = np.asarray(lengths)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iub"):
        got = f"{given.dtype} of {given.ndim} dimensions"
        raise _error.invalid("seq_weights", "lengths", got, "a sequence of whole numbers")
    sizes = np.ascontiguousarray(given, np.int64)
    weights = np.empty(len(sizes), np.float64)
    done(
        LIBRARY.gradus_seq_weights(
            operator.index(aggregation),
            int(count_empty),
            _error.number("seq_weights", "value", value),
            sizes.ctypes.data_as(ctypes.POINTER(ctypes.c_int64)),
            len(sizes),
            weights.ctypes.data_as(ctypes.POINTER(ctypes.c_double)),
        )
    )
    return weights


def struct(name: str, **fields: Any) -> Any:
    """A struct of the header with an op's defaults and `fields` over them: `policy_settings`,
    `logit_transform`, `adamw_settings`."""
    if name not in HOLDERS:
        raise _error.invalid("struct", "name", repr(name), f"one of {', '.join(HOLDERS)}")
    return filled(HOLDERS[name][0], name, fields)


def filled(op: str, name: str, fields: dict[str, Any]) -> Any:
    """The struct `name` of an op with `fields` over its defaults; errors are the op's."""
    holder, field = _fields.op_of(op), HOLDERS[name][1]
    args = holder.init()
    _fields.assign(op, name, holder.fields[field].member, args, 0, field, fields)
    made = getattr(args, field)
    return type(made).from_buffer_copy(made)
