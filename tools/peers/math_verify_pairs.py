#!/usr/bin/env python3
"""The reward `numeric` beside the package math-verify, on generated pairs of gold and answer.

    math_verify_pairs.py target/release/examples/judge [pairs]

Values are drawn, each is spelled in several ways, and pairs are made of two spellings of one value or
of neighboring values. So the truth is known: `numeric` must say it, always. math-verify may say
something else only where EXPLAINED gives the reason; a reason that nothing needs is an error too.
"""

import json
import logging
import random
import subprocess
import sys
from fractions import Fraction

import math_verify

logging.disable(logging.CRITICAL)

# Kind of spelling -> why math-verify 0.9 says something else about it than the truth.
EXPLAINED = {
    "plain mixed": "it glues the parts of `1 4/5` to 14/5",
    "space": "of `81 344` it takes one group of digits",
    "thin space": "of `81\\,344` it takes one group of digits",
    "en dash": "it reads no sign in the en dash, which models print for a minus",
    "unicode power": "it reads no powers in raised characters",
    "exponent": "it reads `1e3` as a product with the constant e",
    "negative percent": "it does not take `-181.25\\\\%` for a part of 1",
    "other unit": "it drops units, so that 9 cm is $9; `numeric` holds units of both sides against each other",
}

# Spellings with a unit, and which.
UNITS = {"unit": "cm", "unit squared": "cm^2", "degrees": "°", "dollars": "$"}


def integer(n):
    s, a = ("-" if n < 0 else ""), abs(n)
    yield "plain", f"{n}"
    yield "decimal", f"{n}.0"
    yield "sum", f"{n - 3} + 3"
    yield "product", f"{n} \\cdot 1"
    if a >= 1000:
        yield "comma", f"{n:,}"
        yield "latex comma", f"{n:,}".replace(",", "{,}")
        yield "comma and negative space", f"{n:,}".replace(",", ",\\!")
        yield "thin space", f"{n:,}".replace(",", "\\,")
        yield "space", f"{n:,}".replace(",", " ")
        yield "apostrophe", f"{n:,}".replace(",", "'")
    if a and a % 1000 == 0:
        zeros = len(str(a)) - len(str(a).rstrip("0"))
        head = str(a)[:-zeros]
        yield "scientific", f"{s}{head} \\times 10^{{{zeros}}}"
        yield "exponent", f"{s}{head}e{zeros}"
        yield "unicode power", f"{s}{head}×10{str(zeros).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
    if n < 0:
        yield "unicode minus", f"\u2212{a}"
        yield "en dash", f"\u2013{a}"
    yield "unit", f"{n}\\text{{ cm}}"
    yield "unit squared", f"{n}\\text{{ cm}}^2"
    yield "degrees", f"{n}^\\circ"
    yield "dollars", f"\\${n}" if n >= 0 else f"-\\${a}"
    yield "name", f"x = {n}"
    yield "words", f"{n}\\text{{ apples}}"


def fraction(f):
    s, n, d = ("-" if f < 0 else ""), abs(f.numerator), f.denominator
    yield "frac", f"{s}\\frac{{{n}}}{{{d}}}"
    yield "dfrac", f"{s}\\dfrac{{{n}}}{{{d}}}"
    yield "spaced frac", f"{s}\\frac {{{n}}} {{{d}}}"
    yield "inner sign", f"\\frac{{{f.numerator}}}{{{d}}}"
    yield "slash", f"{s}{n}/{d}"
    yield "unreduced", f"{s}\\frac{{{n * 6}}}{{{d * 6}}}"
    if n < 10 and d < 10:
        yield "short frac", f"{s}\\frac{n}{d}" if len(f"{n}{d}") == 2 else f"{s}\\frac{{{n}}}{{{d}}}"
    if n > d > 1:
        yield "mixed", f"{s}{n // d}\\frac{{{n % d}}}{{{d}}}"
        yield "plain mixed", f"{s}{n // d} {n % d}/{d}"
    left = d
    for p in (2, 5):
        while left % p == 0:
            left //= p
    if left == 1:
        yield "finite decimal", format_decimal(f)
        yield "percent" if f > 0 else "negative percent", f"{format_decimal(f * 100)}\\%"
    yield "over", f"{s}{{{n} \\over {d}}}"


def format_decimal(f):
    n, d, places = f.numerator, f.denominator, 0
    while d != 1:
        n, places = n * 10, places + 1
        g = Fraction(n, d)
        n, d = g.numerator, g.denominator
    digits = str(abs(n)).rjust(places + 1, "0")
    point = f"{digits[:-places]}.{digits[-places:]}" if places else digits
    return ("-" if f < 0 else "") + point


def surd(value):
    """a + b√c"""
    a, b, c = value
    sign, size = ("-" if b < 0 else "+"), abs(b)
    yield "surd", f"{a}{sign}{size}\\sqrt{{{c}}}"
    yield "surd reversed", f"{b}\\sqrt{{{c}}}+{a}" if a >= 0 else f"{b}\\sqrt{{{c}}}-{-a}"
    yield "surd squared in", f"{a}{sign}\\sqrt{{{b * b * c}}}"
    yield "surd half", f"\\frac{{{2 * a}{sign}{2 * size}\\sqrt{{{c}}}}}{{2}}"
    yield "surd short", f"{a}{sign}{size}\\sqrt{c}" if c < 10 else f"{a}{sign}{size}\\sqrt{{{c}}}"
    yield "surd power", f"{a}{sign}{size}\\cdot {c}^{{1/2}}"


def multiple_of_pi(f):
    n, d = f.numerator, f.denominator
    yield "pi", f"\\frac{{{n}\\pi}}{{{d}}}"
    yield "pi behind", f"\\frac{{{n}}}{{{d}}}\\pi"
    yield "pi slash", f"{n}\\pi/{d}"
    yield "pi unicode", f"{n}π/{d}"


def items(values):
    return [str(value) for value in values]


def finite_set(values):
    yield "set", "\\{" + ", ".join(items(values)) + "\\}"
    yield "set reversed", "\\{" + ",".join(items(reversed(values))) + "\\}"
    yield "list", ", ".join(items(values))
    yield "and", " \\text{ and } ".join(items(values)) if len(values) == 2 else ", ".join(items(values))
    yield "or", " \\text{ or } ".join(f"x = {v}" for v in values) if len(values) == 2 else ", ".join(items(values))


def plus_minus(n):
    yield "pm", f"\\pm {n}"
    yield "pm list", f"{n}, {-n}"
    yield "pm set", f"\\{{{-n}, {n}\\}}"


def pair(values):
    a, b = values
    yield "tuple", f"({a}, {b})"
    yield "tuple left", f"\\left({a},{b}\\right)"
    yield "tuple decimal", f"({a}.0, {b})"


def interval(value):
    a, b, kind = value
    left, right = kind
    yield "interval", f"{left}{a}, {b}{right}"
    yield "interval left", f"\\left{left}{a},{b}\\right{right}"
    yield "interval in", f"x \\in {left}{a},{b}{right}"


def power(n):
    yield "power", f"2^{{{n}}}"
    yield "power value", f"{2 ** n}"
    yield "power product", f"2 \\cdot 2^{{{n - 1}}}"


def draw(rng):
    """A value, another near it, and how such values are spelled."""
    nonzero = lambda most: rng.choice([-1, 1]) * rng.randint(1, most)
    kind = rng.randrange(10)
    if kind == 0:
        n = nonzero(10 ** rng.randint(1, 7))
        return n, rng.choice([-n, n + 1, n * 10]), integer
    if kind == 1:
        n = nonzero(99) * 10 ** rng.randint(3, 6)
        return n, rng.choice([n // 1000, n * 10, -n]), integer
    if kind in (2, 3):
        f = Fraction(nonzero(60), rng.randint(2, 20))
        if f.denominator == 1:
            f += Fraction(1, 2)
        return f, rng.choice([-f, 1 / f if abs(f) != 1 else f + 2, f + 1]), fraction
    if kind == 4:
        a, b, c = nonzero(9), nonzero(9) * 2, rng.choice([2, 3, 5, 7, 11])
        return (a, b, c), rng.choice([(a, -b, c), (b, a * 2, c), (a, b, c + 2)]), surd
    if kind == 5:
        f = Fraction(rng.randint(1, 12), rng.randint(2, 9))
        return f, rng.choice([f + 1, 2 * f]), multiple_of_pi
    if kind == 6:
        values = rng.sample(range(-20, 20), rng.randint(2, 4))
        return values, values[:-1] + [values[-1] + 50], finite_set
    if kind == 7:
        n = rng.randint(1, 99)
        return n, n + 1, plus_minus
    if kind == 8:
        a, b = rng.sample(range(1, 30), 2)
        return (a, b), (b, a), pair
    if rng.random() < 0.5:
        n = rng.randint(2, 60)
        return n, n + 1, power
    a = rng.randint(-20, 20)
    b, kind = a + rng.randint(1, 20), rng.choice(["[]", "(]", "[)"])
    return (a, b, kind), (a, b + 1, kind), interval


def pairs(count):
    rng = random.Random(0)
    made = []
    while len(made) < count:
        value, other, spell = draw(rng)
        gold_kind, gold = rng.choice(list(spell(value)))
        for right, said in [(True, value), (False, other)]:
            kind, text = rng.choice(list(spell(said)))
            units = {UNITS[k] for k in (gold_kind, kind) if k in UNITS}
            if right and len(units) == 2:
                kind, right = "other unit", False
            made.append((gold_kind, gold, kind, text, right))
    return made


def main():
    judge, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 6000
    made = pairs(count)
    lines = [json.dumps({"completion": f"So it is $\\boxed{{{said}}}$.", "row": {"answer": gold}})
             for _, gold, _, said, _ in made]
    done = subprocess.run([judge, "numeric"], input="\n".join(lines), capture_output=True, text=True, check=True)
    ours = [json.loads(line).get("score") for line in done.stdout.splitlines()]
    assert len(ours) == len(made), (len(ours), len(made))
    wrong, unexplained, used = [], [], {}
    for (gold_kind, gold, kind, said, right), score in zip(made, ours):
        if score != float(right):
            wrong.append((gold, said, right, score))
        theirs = math_verify.verify(
            math_verify.parse(f"${gold}$", parsing_timeout=None),
            math_verify.parse(f"So it is $\\boxed{{{said}}}$.", parsing_timeout=None),
            timeout_seconds=None,
        )
        if theirs != right:
            reason = next((k for k in (kind, gold_kind) if k in EXPLAINED), None)
            if reason:
                used[reason] = used.get(reason, 0) + 1
            else:
                unexplained.append((gold_kind, gold, kind, said, right, theirs))
    print(f"{len(made)} pairs, {len(wrong)} judged wrong, {sum(used.values())} differences explained")
    for reason, number in sorted(used.items()):
        print(f"  {number:4} {reason}: {EXPLAINED[reason]}")
    for case in wrong[:20]:
        print("WRONG", *case, sep=" | ")
    for case in unexplained[:40]:
        print("UNEXPLAINED", *case, sep=" | ")
    stale = [reason for reason in EXPLAINED if reason not in used]
    for reason in stale:
        print("NO LONGER NEEDED", reason)
    sys.exit(bool(wrong or unexplained or stale))


if __name__ == "__main__":
    main()
