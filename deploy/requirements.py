"""Print requirements of pyproject.toml, one a line: `run` (what every service needs), `build`, or the name of an extra.

Images install them before the sources are copied, so that a change of code rebuilds one small layer.
"""

import sys
import tomllib
from pathlib import Path

pyproject = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
for part in sys.argv[1:]:
    known = {"run": pyproject["project"]["dependencies"], "build": pyproject["build-system"]["requires"]}
    print(*(known | pyproject["project"]["optional-dependencies"])[part], sep="\n")
