"""The Python of the project's README runs as it stands."""

import pathlib
import re

import pytest

README = pathlib.Path(__file__).resolve().parents[3] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_block(block):
    assert len(block.splitlines()) <= 12
    exec(compile(block, str(README), "exec"), {})


def test_there_are_some():
    assert BLOCKS
