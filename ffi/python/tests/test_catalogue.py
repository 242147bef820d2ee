"""The catalogue of bad input: the class of the exception, its text, and that nothing else happened."""

import re

import numpy as np
import pytest
from catalogue import CATALOGUE, Call, changed, error_class, function

import gradus

BASES = CATALOGUE["bases"]


@pytest.fixture(scope="module")
def context():
    with gradus.Device("cpu") as device:
        yield device.context


def refused(run, case):
    """The error that the case asks for."""
    with pytest.raises(error_class(case["status"])) as raised:
        run()
    error = raised.value
    assert error.name == case["status"] and str(error) == error.message
    if case["status"] == "INVALID_ARGUMENT":
        assert re.search(r"argument `.+`: got .+, expected .+", error.message), error.message
    for needle in case["needles"]:
        assert needle in error.message, f"`{needle}` is not in: {error.message}"


def cases(kind, of):
    """Cases as pytest parameters; `open` ones are expected to fail, and must be closed once they do not."""

    def parameter(case):
        marks = [pytest.mark.xfail(reason=case["open"], strict=True)] if "open" in case else []
        return pytest.param(case, marks=marks, id=f"{case[of]}: {case['name']}")

    return [parameter(case) for case in CATALOGUE[kind]]


@pytest.mark.parametrize("case", cases("cases", "base"))
def test_op(case, context):
    base = BASES[case["base"]]
    call = Call(base["op"], changed(base["args"], case["set"]))
    if "struct_size" in case["set"]:
        call.args.struct_size = case["set"]["struct_size"]
    before = {name: array.copy() for name, array in call.memory.items()}
    if case["status"] == "OK":
        call.run(context)
    else:
        refused(lambda: call.run(context), case)
        for name, array in call.memory.items():
            assert array.tobytes() == before[name].tobytes(), f"{name} was written"
    Call(base["op"], base["args"]).run(context)


@pytest.mark.parametrize("case", cases("functions", "function"))
def test_function(case, context):
    refused(lambda: function(case["function"], case["arguments"], context), case)
    out = gradus.lerp(np.zeros(2), np.ones(2), weight=0.25)
    assert (out.y == 0.25).all()


def test_the_catalogue_is_as_large_as_promised():
    assert sum(case["status"] != "OK" for case in CATALOGUE["cases"]) + len(CATALOGUE["functions"]) >= 45
    names = [(case.get("base"), case["name"]) for case in CATALOGUE["cases"]]
    assert len(set(names)) == len(names)
