"""What a user sees of every script: one line for an error, whatever is in it."""

import pytest

from common.cli import progress_bar, run_script
from common.errors import UserError


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


def test_bugs_are_not_hidden():
    def main(argv):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_script(main)([])


def test_arguments_reach_main():
    seen = []
    run_script(seen.append)(["--flag"])
    run_script(seen.append)()
    assert seen == [["--flag"], None]


def test_progress_names_stages_and_values(capsys):
    with progress_bar() as report:
        report("attention", 1, 2, loss=1.23456)
        report("attention", 2, 2, loss=0.5)
        report("critic", 3, 7)
    err = capsys.readouterr().err
    assert "attention" in err and "2/2" in err and "loss 0.5" in err
    assert "critic" in err and "3/7" in err
