import json
import shutil
import subprocess
from pathlib import Path

import pytest

from hypergpu.cli import main
from hypergpu.report import write_report

CHROMIUM = shutil.which("chromium")


def test_writes_next_to_the_run_and_says_where(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["report", str(run_dir)])
    assert ended.value.code in (0, None)
    assert capsys.readouterr().out.strip() == str(run_dir / "report.html")
    assert (run_dir / "report.html").read_text().startswith("<!doctype html>")


def test_json_has_the_figures_and_the_comparison(
    run_dir: Path, baseline_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["report", str(run_dir), "--baseline", str(baseline_dir), "--out", str(tmp_path / "r.html"), "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["report"] == str(tmp_path / "r.html")
    assert printed["comparison"]["speedup"] == pytest.approx(1.92, abs=0.05)
    assert printed["baseline"]["elapsed_seconds"] > printed["elapsed_seconds"]


@pytest.mark.parametrize("arguments", [["nowhere"], ["."], [".", "--baseline", "nowhere"]])
def test_no_run_is_one_line_and_exit_code_2(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["report", *arguments])
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_place_that_cannot_be_written_to_is_one_line(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["report", str(run_dir), "--out", str(run_dir / "no" / "such" / "place.html")])
    assert ended.value.code == 2
    assert "choose another place with --out" in capsys.readouterr().err


@pytest.mark.e2e
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_script_runs_under_the_policy_in_a_browser(run_dir: Path, tmp_path: Path) -> None:
    report = write_report(run_dir).path
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += ["--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    command = [str(CHROMIUM), *flags, report.as_uri()]
    seen = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert seen.stdout.count('class="cross"') == 4  # one for each chart of time
    assert "shown</output>" in seen.stdout
    assert "Content Security Policy" not in seen.stderr
    assert "Uncaught" not in seen.stderr
