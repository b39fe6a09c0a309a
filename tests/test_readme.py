"""The README's Python runs and prints what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_example_gives_the_numbers_it_shows():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    shown = [[float(x) for x in re.findall(r"-?\d+\.?\d*", line.split("]")[0])] for line in code.splitlines()[-3:]]
    namespace: dict = {}
    exec(code, namespace)
    assert torch.allclose(namespace["advantages"], torch.tensor(shown), atol=0.005)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))) or [None])
def test_local_links_lead_somewhere(link):
    if link is not None:
        assert (Path(__file__).parent.parent / link).exists(), link
