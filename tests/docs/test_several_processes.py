"""The script of the page on several processes, started by torchrun."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from sybil.document import Document
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "how-to" / "several-processes.md"


def test_script_runs_in_two_processes_and_one_of_them_logs(tmp_path):
    script = next(iter(Document.parse(str(PAGE), PythonCodeBlockParser()).examples())).parsed
    (tmp_path / "train.py").write_text(script)
    assert "torchrun --standalone --nproc-per-node 2 train.py" in PAGE.read_text()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    variables["CUDA_VISIBLE_DEVICES"] = ""  # gloo, also where there are GPUs, maybe one
    run = subprocess.run(
        [*command, "2", "train.py"],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("-- >> Start of training phase << --") == 2  # of two experiences
    assert "not compatible" not in run.stderr
    posterior = torch.load(tmp_path / "posterior.pt", weights_only=True)
    assert all(not name.startswith("module.") for name in posterior["mean"])
