"""The script for a GPU runs, and the commands that its header gives are right."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are not part of this copy", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import train_speed  # noqa: E402
from train_speed_variants import variants  # noqa: E402

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="a script for bash")

TEXT = (BENCHMARKS / "gpu.sh").read_text(encoding="utf-8")


def commands():
    lines = re.sub(r"\\\n#\s*", "", TEXT).splitlines()
    return [shlex.split(line[1:]) for line in lines if re.match(r"# +.*benchmarks/gpu\.sh OUT", line)]


def test_the_command_for_ten_minutes_names_variants():
    limited, small = commands()
    assert limited[:4] == ["timeout", "570", "benchmarks/gpu.sh", "OUT"]
    chosen = train_speed.build_parser().parse_args(limited[4:])
    assert len(chosen.variants) == 6
    assert all(any(fnmatch(name, pattern) for name in variants("cuda")) for pattern in chosen.variants)
    assert small[:2] == ["benchmarks/gpu.sh", "OUT"]


def test_it_runs_on_a_processor(tmp_path):
    out = tmp_path / "out put"
    options = [*commands()[1][2:], "--warmup", "0", "--batch-size", "2", "--threads", "1"]
    env = {**os.environ, "PYTHON": sys.executable}
    command = ["bash", str(BENCHMARKS / "gpu.sh"), str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in out.iterdir()} == {"gpu.txt", "speed.json", "speed.md", "log.txt"}
    workloads = json.loads((out / "speed.json").read_text(encoding="utf-8"))["workloads"]
    assert list(workloads) == ["synthetic-384", "synthetic-80"]
    text = (out / "speed.md").read_text(encoding="utf-8")
    for name, work in workloads.items():
        assert work["shared"] == 59
        assert work["matrix"]["best"] > 0
        assert [v["variant"] for v in work["variants"]] == ["fenlei", "tutorial"]
        for v in work["variants"]:
            assert not v["failed"]
            assert v["first_loss_agrees"]
            assert v["rows_per_second"] == pytest.approx(2 / v["seconds_a_step"])
            assert f"| {v['variant']} | {v['seconds_a_step']:.2f} | {v['rows_per_second']:.3g} |" in text
        assert f"### {name}" in text
    assert "measured before the variants, alone" in text
    assert text.strip().splitlines()[-1] in (out / "log.txt").read_text(encoding="utf-8")
