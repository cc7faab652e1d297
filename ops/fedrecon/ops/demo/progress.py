"""What the demo shows while it runs: a live table of rounds with the error on unseen users."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import Group
from rich.table import Table
from rich.text import Text

from fedrecon.ops.fleet.running import VANISHED, Tally
from fedrecon.ops.round_commands import rounds_table, row_of
from fedrecon.v1 import admin_pb2 as admin


@dataclass(slots=True)
class Progress:
    """Everything that is shown.

    Attributes:
        baseline: error of predicting each user's own mean.
        newest: the newest attempts, newest first.
        unseen_rmse: error on unseen users by round.
        tally: how the devices' sessions went.
        mended: services that were started again.
    """

    baseline: float
    newest: list[admin.Round] = field(default_factory=list)
    unseen_rmse: dict[int, float] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    mended: list[str] = field(default_factory=list)

    def __rich__(self) -> Group:
        table: Table = rounds_table("", "RMSE of unseen users")
        for shown in reversed(self.newest):
            rmse = self.unseen_rmse.get(shown.key.round)
            committed = shown.phase == admin.ROUND_PHASE_COMMITTED
            table.add_row(*row_of(shown), f"[bold]{rmse:.4f}[/]" if rmse is not None and committed else "")
        outcomes = self.tally.outcomes
        line = (
            f"devices: {outcomes['uploaded']} reported, {outcomes[VANISHED]} dropped out, "
            f"{outcomes['too late']} too late, {outcomes['rejected']} not drawn\n"
            f"to compare: predicting each unseen user's own mean has RMSE {self.baseline:.4f}"
        )
        if self.mended:
            line += f"\nstarted again: {', '.join(self.mended)}"
        return Group(table, Text(line, style="dim"))
