"""Every op against numpy in f64. CASES: name -> check(abi)."""

from __future__ import annotations

from collections.abc import Callable

from plain import ops_decoder, ops_optim, ops_policy, ops_products, ops_quantize, ops_vocabulary
from plain.abi import Abi

FAMILIES = (ops_vocabulary, ops_policy, ops_products, ops_quantize, ops_decoder, ops_optim)
CASES: dict[str, Callable[[Abi], str]] = {
    name.removeprefix("check_"): check
    for module in FAMILIES
    for name, check in vars(module).items()
    if name.startswith("check_")
}
