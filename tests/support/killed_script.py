"""A user's script in a process of its own, which is killed at a moment of its choice or at random.

It tells what it is doing by one letter in a file: T(raining), F(isher), E(valuation) or
C(heckpoint writing).
"""

import os
import subprocess
import sys
import time
from pathlib import Path

PHASES = "TFEC"
_START_SECONDS = 120


def main(method, folder, out, phase_file):
    """What the process does."""
    from avalanche.training.plugins import SupervisedPlugin

    from avalanche_hnet.plugins import prior_ewc
    from avalanche_hnet.plugins.checkpointing.files import CheckpointFolder
    from tests.support import checkpoint_runs

    descriptor = os.open(phase_file, os.O_CREAT | os.O_WRONLY)

    def is_in(letter):
        os.pwrite(descriptor, letter.encode(), 0)

    def told(kind, name, letter, then):
        original = getattr(kind, name)

        def method(self, *args, **kwargs):
            is_in(letter)
            try:
                return original(self, *args, **kwargs)
            finally:
                is_in(then)

        setattr(kind, name, method)

    class Tells(SupervisedPlugin):
        def before_training_iteration(self, strategy, **kwargs):
            is_in("T")

        def before_eval(self, strategy, **kwargs):
            is_in("E")

    rows, cost = prior_ewc._fisher_rows, prior_ewc.publish_cost

    def before_the_fisher(*args, **kwargs):
        is_in("F")
        return rows(*args, **kwargs)

    def after_the_fisher(*args, **kwargs):
        is_in("T")
        return cost(*args, **kwargs)

    prior_ewc._fisher_rows, prior_ewc.publish_cost = before_the_fisher, after_the_fisher
    told(CheckpointFolder, "write", "C", "-")
    make = checkpoint_runs.make

    def with_phases(*args, **kwargs):
        strategy = make(*args, **kwargs)
        strategy.plugins.append(Tells())
        return strategy

    checkpoint_runs.make = with_phases
    checkpoint_runs.main(method, folder, out, 0)


class Script:
    """Starts the script, again and again.

    Args:
        method: of ``checkpoint_runs``.
        folder: for its checkpoints and results.
    """

    def __init__(self, method, folder):
        self.method = method
        Path(folder).mkdir(exist_ok=True)
        self.out = Path(folder) / "result.pt"
        self._folder = Path(folder) / "run"
        self._phase = Path(folder) / "phase"

    def start(self):
        """A process that has made its strategy."""
        self._phase.write_text("-")
        arguments = [self.method, self._folder, self.out, self._phase]
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.support.killed_script"]
            + [str(argument) for argument in arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def killed(self, phase, seconds):
        """Kill a process so long after it was first seen in a phase; the phase it was killed in.

        None if it was faster.
        """
        process = self.start()
        deadline = time.monotonic() + _START_SECONDS
        while self._phase.read_text() != phase and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.0003)
        time.sleep(seconds)
        process.kill()
        last = self._phase.read_text()
        stderr = process.communicate()[1]
        assert process.returncode in (0, -9), stderr.decode()
        return last if process.returncode == -9 else None

    def finish(self):
        """Let it come to its end."""
        process = self.start()
        stderr = process.communicate()[1]
        assert process.returncode == 0, stderr.decode()


if __name__ == "__main__":
    main(*sys.argv[1:])
