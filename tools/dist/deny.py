#!/usr/bin/env python3
"""What deny.toml says of licenses, banned crates and sources, checked against `cargo metadata`. `cargo deny check` says the
same and knows the advisories too, but has to be compiled and needs its database from the network; this runs anywhere.

    python3 tools/dist/deny.py
"""

import json
import pathlib
import re
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
REGISTRY = "registry+https://github.com/rust-lang/crates.io-index"


def allowed(expression: str, licenses: set[str]) -> bool:
    """Whether an SPDX expression can be met. `A/B` is how old manifests write `A OR B`."""
    words = re.findall(r"[()]|[^\s()/]+|/", expression)
    words = ["OR" if word == "/" else word for word in words]

    def alternatives(at: int) -> tuple[bool, int]:
        met, at = conjunction(at)
        while at < len(words) and words[at] == "OR":
            other, at = conjunction(at + 1)
            met = met or other
        return met, at

    def conjunction(at: int) -> tuple[bool, int]:
        met, at = term(at)
        while at < len(words) and words[at] == "AND":
            other, at = term(at + 1)
            met = met and other
        return met, at

    def term(at: int) -> tuple[bool, int]:
        if words[at] == "(":
            met, at = alternatives(at + 1)
            return met, at + 1
        name, at = words[at], at + 1
        if at < len(words) and words[at] == "WITH":
            # An exception only permits more.
            return name in licenses or f"{name} WITH {words[at + 1]}" in licenses, at + 2
        return name in licenses, at

    met, end = alternatives(0)
    if end != len(words):
        raise ValueError(f"`{expression}` is no license expression")
    return met


def findings(metadata: dict, rules: dict) -> list[str]:
    """What the rules refuse, a line each."""
    licenses = set(rules["licenses"]["allow"])
    used = {node["id"] for node in metadata["resolve"]["nodes"]}
    packages = {package["id"]: package for package in metadata["packages"] if package["id"] in used}
    found = []
    for package in packages.values():
        name = f"{package['name']} {package['version']}"
        if package["source"] not in (None, REGISTRY):
            found.append(f"{name}: source {package['source']}")
        if not allowed(package["license"] or "none", licenses):
            found.append(f"{name}: license `{package['license']}`, expected those of deny.toml")
    banned = {rule["crate"]: set(rule.get("wrappers", [])) for rule in rules["bans"]["deny"]}
    for node in metadata["resolve"]["nodes"]:
        user = packages[node["id"]]["name"]
        for dependency in node["deps"]:
            name = packages[dependency["pkg"]]["name"]
            if name in banned and user not in banned[name]:
                found.append(f"{user} depends on {name}, which deny.toml bans")
    return found


def main() -> int:
    # The parser first: a check that refuses nothing would pass everything.
    some = {"MIT", "Zlib"}
    for expression, expected in [
        ("MIT OR Apache-2.0", True),
        ("Apache-2.0/MIT", True),
        ("Apache-2.0 AND MIT", False),
        ("(GPL-3.0 OR MIT) AND Zlib", True),
        ("GPL-3.0", False),
    ]:
        assert allowed(expression, some) == expected, expression
    rules = tomllib.loads((ROOT / "deny.toml").read_text())
    command = ["cargo", "metadata", "--format-version", "1", "--all-features", "--locked"]
    command += [f"--filter-platform={target}" for target in rules["graph"]["targets"]]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    found = findings(metadata, rules)
    print("\n".join(found) or f"{len(metadata['packages'])} packages: licenses, sources and bans are as deny.toml says")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
