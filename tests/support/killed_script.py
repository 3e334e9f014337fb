"""A user's script in a process of its own, which is killed at a moment of its choice or at random.

It tells what it is doing by one letter in a file: T(raining), F(isher), E(valuation) or
C(heckpoint writing).
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

PHASES = "TFEC"
_SECONDS = 120


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

    batches, cost = prior_ewc.fisher_batches, prior_ewc.publish_cost

    def before_the_fisher(*args, **kwargs):
        is_in("F")
        return batches(*args, **kwargs)

    def after_the_fisher(*args, **kwargs):
        is_in("T")
        return cost(*args, **kwargs)

    prior_ewc.fisher_batches, prior_ewc.publish_cost = before_the_fisher, after_the_fisher
    told(CheckpointFolder, "write", "C", "-")
    make = checkpoint_runs.make

    def with_phases(*args, **kwargs):
        strategy = make(*args, **kwargs)
        strategy.plugins.append(Tells())
        return strategy

    checkpoint_runs.make = with_phases
    checkpoint_runs.main(method, folder, out, 0)


class Processes:
    """Makes processes that run the script, by forking one that has imported everything."""

    def __init__(self):
        self._server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.support.killed_script"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def start(self, *arguments):
        """The number of a new process."""
        self._server.stdin.write(json.dumps([str(argument) for argument in arguments]) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def return_code(self):
        """Of the last process, once it has ended."""
        return int(self._server.stdout.readline())

    def close(self):
        self._server.stdin.close()
        self._server.wait()


def serve():
    """Fork a process for each line with arguments; tell its number, and how it ended."""
    from tests.support import checkpoint_runs

    checkpoint_runs.torch.set_num_threads(1)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            main(*json.loads(line))
            os._exit(0)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


class Script:
    """Starts the script, again and again.

    Args:
        processes: that run it.
        method: of ``checkpoint_runs``.
        folder: for its checkpoints and results.
    """

    def __init__(self, processes, method, folder):
        self.out = Path(folder) / "result.pt"
        self._processes = processes
        self._phase = Path(folder) / "phase"
        self._arguments = method, Path(folder) / "run", self.out, self._phase
        Path(folder).mkdir(exist_ok=True)

    def killed(self, phase, seconds):
        """Kill a process so long after it was first seen in a phase; the phase it was killed in.

        None if it was faster.
        """
        self._phase.write_text("-")
        pid = self._processes.start(*self._arguments)
        until = time.monotonic() + _SECONDS
        while self._phase.read_text() != phase and not self.out.exists():
            assert time.monotonic() < until
            time.sleep(0.0003)
        time.sleep(seconds)
        with suppress(ProcessLookupError):  # it has just come to its end
            os.kill(pid, signal.SIGKILL)
        last = self._phase.read_text()
        code = self._processes.return_code()
        assert code in (0, -signal.SIGKILL)
        return last if code else None

    def finish(self):
        """Let it come to its end."""
        self._processes.start(*self._arguments)
        assert self._processes.return_code() == 0


if __name__ == "__main__":
    serve()
