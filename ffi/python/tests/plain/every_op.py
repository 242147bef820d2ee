"""Every op against numpy in f64. CASES: name -> check(abi)."""

from __future__ import annotations

from collections.abc import Callable

from plain import ops_matrix, ops_policy, ops_vocabulary
from plain.abi import Abi

CASES: dict[str, Callable[[Abi], str]] = {
    name.removeprefix("check_"): check
    for module in (ops_matrix, ops_policy, ops_vocabulary)
    for name, check in vars(module).items()
    if name.startswith("check_")
}
