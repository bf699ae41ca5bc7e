"""GARAGE's script in processes of their own, each with a fault; `test_faults.py` starts this as a script.

One process imports what is needed and runs once to be warm; it forks a child for each case.

Run:    python tests/forked_runs.py '["--input", "toy.h5ad", "--out", "warm"]'
Reads:  from stdin, a JSON object a line: fault, value, argv
Writes: to stdout, a JSON object a line: code (exit code, or minus the signal), told (what it wrote to stderr)
"""

import itertools
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from types import SimpleNamespace

import torch

import common.run
from data_generation import garage

CHECKPOINT_EVERY = 7  # looks at the clock, which then strikes once a look


def count_events(at: int) -> None:
    """Kill this process at its at-th call or return of a function, wherever that is; 0 tells how many there are."""
    common.run.time = SimpleNamespace(**vars(time) | {"monotonic": itertools.count().__next__})
    common.run.CHECKPOINT_SECONDS = CHECKPOINT_EVERY
    events = itertools.count(1)

    def count(*_: object) -> None:
        if next(events) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    if at == 0:
        end = os._exit
        os._exit = lambda code: (sys.setprofile(None), print(next(events) - 1, file=sys.stderr, flush=True), end(code))


def count_checkpoints(at: int) -> None:
    """Kill this process when it has written so many checkpoints."""
    common.run.CHECKPOINT_SECONDS = 0
    save, written = common.run.ResumableRun.save, itertools.count(1)

    def save_and_die(*args: object) -> None:
        save(*args)
        if next(written) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    common.run.ResumableRun.save = save_and_die


def bound_memory(more: int) -> None:
    """Let this process have so many bytes more than it has."""
    with open("/proc/self/statm") as file:  # noqa: PTH123
        pages = int(file.read().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


FAULTS = {"none": lambda _: None, "events": count_events, "checkpoints": count_checkpoints, "memory": bound_memory}


def run(argv: list[str], fault: str, value: int) -> None:
    """Run the script and leave."""
    code = 0
    try:
        FAULTS[fault](value)
        garage.main(argv)
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    garage.main(json.loads(sys.argv[1]))
    print("warm", file=answers, flush=True)
    for line in sys.stdin:
        case = json.loads(line)
        with tempfile.TemporaryFile("w+") as told:
            child = os.fork()
            if child == 0:
                os.dup2(told.fileno(), 2)
                run(case["argv"], case["fault"], case["value"])
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            told.seek(0)
            print(json.dumps({"code": code, "told": told.read()}), file=answers, flush=True)
