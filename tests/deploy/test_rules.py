import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="needs promtool: apt-get install prometheus")
WORDS = re.compile(r"\b(?:hypergpu|netsim)_\w+")


@needs_promtool
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "deploy/prometheus/prometheus.yml"),
        ("check", "rules", "deploy/prometheus/rules.yml"),
        ("test", "rules", "tests/deploy/rules_test.yml"),
    ],
)
def test_promtool_is_content(root: Path, arguments: tuple[str, ...]) -> None:
    done = subprocess.run([str(PROMTOOL), *arguments], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_is_tested(root: Path) -> None:
    groups = yaml.safe_load((root / "deploy/prometheus/rules.yml").read_text())["groups"]
    tested = (root / "tests/deploy/rules_test.yml").read_text()
    for rule in (rule for group in groups for rule in group["rules"]):
        assert rule.get("alert") or rule["record"] in tested
        assert (rule.get("alert") or rule["record"]) in tested


def test_rules_ask_only_for_what_is_exported(root: Path, exported: Any) -> None:
    known = {name for metrics in exported.values() for name in metrics}
    asked = set(WORDS.findall((root / "deploy/prometheus/rules.yml").read_text()))
    recorded = {"hypergpu_round_duration_seconds_bucket"}
    assert asked - recorded <= known
