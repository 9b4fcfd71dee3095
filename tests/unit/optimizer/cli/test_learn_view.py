"""What the command learn shows: a bar on a terminal, some lines elsewhere."""

import io

from rich.console import Console

from optimizer.cli.learn_commands import _shown
from workers.learning.descent import Step


def shown(*, is_terminal: bool, plain: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=is_terminal, width=100)
    with _shown(console, plain=plain) as on_step:
        for number in range(1, 26):
            on_step(Step(number, 25, {"kl/math": 1 / number, "loss": 2 / number}))
    return out.getvalue()


def test_lines_are_few_and_hold_the_losses() -> None:
    lines = shown(is_terminal=False).splitlines()
    assert lines[0] == "step 1/25: kl/math 1, loss 2"
    assert lines[-1] == "step 25/25: kl/math 0.04, loss 0.08"
    assert len(lines) == 10
    assert shown(is_terminal=True, plain=True) == shown(is_terminal=False)


def test_terminal_shows_a_bar_that_goes_away() -> None:
    text = shown(is_terminal=True)
    assert "learning" in text
    assert "kl/math 0.04, loss 0.08" in text
    assert "step 1/25" not in text
