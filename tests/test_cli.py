"""What a user sees of every script: one line for an error, whatever is in it."""

import json
import os
import pty
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from benchmarking.baseline import load_method
from common.cli import complain, console, errors, progress_bar, run_script, speaking
from common.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "message",
    [
        "plain",
        "a path [with]/brackets[/with] and [/no such tag]",
        "an :apple: is no picture here",
        "a word " * 60 + "end",
        "two\n  lines",
    ],
)
def test_an_error_is_one_line_as_it_was_meant(capsys, message):
    def main(argv):
        raise UserError(message)

    with pytest.raises(SystemExit) as left:
        run_script(main)([])
    assert left.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error: {' '.join(message.split())}\n"


def test_stopping_is_no_error(capsys):
    def main(argv):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as left:
        run_script(main)()
    assert left.value.code == 130
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            MemoryError("Unable to allocate 7.45 GiB for an array"),
            "memory ran out (Unable to allocate 7.45 GiB for an ",
        ),
        (MemoryError(), "memory ran out (no more can be had): give fewer cells or genes"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: ...\nC++"),
            "memory ran out (DefaultCPUAllocator: can",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "memory ran out (CUDA out of memory."),
        (OSError(12, "Cannot allocate memory"), "memory ran out ([Errno 12] Cannot allocate memory)"),
        (PermissionError(13, "Permission denied", "/a/b.png"), "/a/b.png cannot be used (Permission denied): "),
    ],
)
def test_what_the_system_denies_is_one_line(capsys, error, told):
    def main(argv):
        raise error

    with pytest.raises(SystemExit) as left:
        run_script(main)([])
    assert left.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {told}") and err.count("\n") == 1


def test_bugs_are_not_hidden():
    def main(argv):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_script(main)([])


def test_arguments_reach_main(monkeypatch):
    seen = []
    run_script(seen.append)(["--flag"])
    monkeypatch.setattr(sys, "argv", ["script.py", "--other"])
    run_script(seen.append)()
    assert seen == [["--flag"], ["--other"]]


def test_progress_names_stages_and_values(capsys):
    with progress_bar() as report:
        report("attention", 1, 2, loss=1.23456)
        report("attention", 2, 2, loss=0.5)
        report("critic", 3, 7)
    err = capsys.readouterr().err
    assert "attention" in err and "2/2" in err and "loss 0.5" in err
    assert "critic" in err and "3/7" in err


def test_the_version_stands_in_one_place(capsys):
    main = run_script(lambda argv: pytest.fail("the script ran"))
    main(["--seed", "1", "--version"])
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert capsys.readouterr().out == f"garage-scrna {version}\n"
    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == version


def test_quiet_is_for_every_script_and_hides_nothing_that_went_wrong(capsys):
    @run_script
    def main(argv):
        assert argv == ["--seed", "1"]
        console.print("out")
        errors.print("note")
        complain("failed", "gan on toy, [seed] 1")

    main(["--seed", "--quiet", "1"])
    assert capsys.readouterr() == ("", "failed: gan on toy, [seed] 1\n")
    console.print("out")
    assert capsys.readouterr().out == "out\n"


def test_help_tells_what_every_script_takes(capsys):
    @run_script
    def main(argv):
        print("usage")
        sys.exit(0 if "--help" in argv else 2)

    with pytest.raises(SystemExit):
        main(["--help"])
    help_ = capsys.readouterr().out
    assert help_.startswith("usage\n") and "--version" in help_ and "--tyro-write-completion" in help_
    with pytest.raises(SystemExit):
        main([])
    assert capsys.readouterr().out == "usage\n"


@pytest.mark.parametrize(("flags", "heard"), [({}, "on"), ({"json": True}, "n"), ({"quiet": True}, "")])
def test_who_is_heard(capsys, flags, heard):
    def talk():
        console.print("out")
        errors.print("note")
        with progress_bar() as report:
            report("stage", 1, 1)

    with pytest.raises(ZeroDivisionError), speaking(**flags):
        talk()
        raise ZeroDivisionError
    out, err = capsys.readouterr()
    assert (out == "out\n") == ("o" in heard) and (out == "") == ("o" not in heard)
    assert ("note" in err and "stage" in err) == ("n" in heard) and (err == "") == ("n" not in heard)
    talk()  # it is over
    out, err = capsys.readouterr()
    assert out == "out\n" and "note" in err and "stage" in err


FAIL = """
from common.cli import run_script
from common.errors import UserError

@run_script
def main(argv=None):
    raise UserError("wrong")

main([])
"""


@pytest.mark.parametrize(
    ("setting", "terminal", "coloured"),
    [({}, True, True), ({"NO_COLOR": "1"}, True, False), ({"TERM": "dumb"}, True, False), ({}, False, False)],
)
def test_colours_are_for_terminals(setting, terminal, coloured):
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    reader, writer = pty.openpty() if terminal else os.pipe()
    try:
        command, environment = [sys.executable, "-c", FAIL], {**plain, "TERM": "xterm", **setting}
        done = subprocess.run(command, cwd=ROOT, env=environment, stderr=writer)
        shown = os.read(reader, 1000).decode()
    finally:
        os.close(reader)
        os.close(writer)
    assert done.returncode == 2 and "wrong" in shown
    assert bool(re.search(r"\x1b\[[0-9;]*31m", shown)) == coloured, shown  # 31 is red


@pytest.mark.parametrize("name", ["gan", "scdiffusion", "scvae"])
def test_baselines_talk_as_garage_does(capsys, toy, tmp_path, name):
    toy.write_h5ad(tmp_path / "toy.h5ad")
    main, folder = load_method(name).main, tmp_path / "run"
    flags = ["--input", str(tmp_path / "toy.h5ad"), "--out", str(folder), "--device", "cpu", "--check-every", "2"]
    flags += ["--autoencoder-steps", "3", "--diffusion-steps", "4"] if name == "scdiffusion" else []

    main([*flags, "--dry-run", "--json"])  # the whole budget of 10,000 steps would take minutes
    plan = json.loads(capsys.readouterr().out)
    assert (plan["method"], plan["params"]["budget"], plan["n_cells"]) == (name, 10_000, toy.n_obs)
    assert plan["estimate"]["seconds"] > 1 and not folder.exists()

    main([*flags, "--budget", "4", "--json"])
    told = json.loads(capsys.readouterr().out)
    drawn = told.pop("drawn")
    assert {"folder": str(folder), **json.loads((folder / "run.json").read_text())} == told
    assert sum(drawn.values()) == toy.n_obs

    main(["--from", str(folder), "--n-cells", "5"])  # one of them of the rare type
    assert f"benchmarking.{'sota' if name == 'gan' else 'scrna_seq_specific'}.{name} --from" in capsys.readouterr().out
    main(["--from", str(folder), "--n-cells", "5", "--quiet"])
    assert capsys.readouterr() == ("", "")
