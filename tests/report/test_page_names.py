"""The page's scripts share one scope, in which a second function of a name would silently replace the first."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

PAGE = Path(__file__).parents[2] / "verl_mtgrpo" / "report" / "page"
DEFINED = re.compile(r"^(?:async )?(?:function|const|let) (\w+)", re.MULTILINE)


def test_no_two_scripts_of_the_page_define_one_name():
    scripts = [path for path in PAGE.glob("*.js") if path.name != "against.js"]  # a page of its own
    names = Counter(name for path in scripts for name in DEFINED.findall(path.read_text()))
    assert len(names) > 50
    assert not [name for name, count in names.items() if count > 1]
