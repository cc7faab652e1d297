"""Draws docs/state-machines.md from the transition tables of the code: `python docs/draw_state_machines.py`."""

from __future__ import annotations

from pathlib import Path

from fedrecon.aggregator import groups
from fedrecon.coordinator import round_transitions

PAGE = Path(__file__).with_name("state-machines.md")

_TEXT = """# State machines

Drawn from the transition tables; do not edit. After a change of a table: `python docs/draw_state_machines.py`.

## A round
`TRANSITIONS` of `fedrecon.coordinator.round_transitions`: every legal event of an attempt, and the phase it leads to.

```mermaid
{rounds}
```

## A sum group
`TRANSITIONS` of `fedrecon.aggregator.groups`. Under `trusted` a group begins in UPLOADING. A closed group may still be
given up, until its round is committed.

```mermaid
{groups}
```
"""


def page() -> str:
    """Returns the page as the tables are now."""
    return _TEXT.format(rounds=round_transitions.mermaid(), groups=_groups())


def _groups() -> str:
    lines = ["stateDiagram-v2", *(f"    [*] --> {phase.name}" for phase in sorted(groups.FIRST_PHASES))]
    for phase, following in groups.TRANSITIONS.items():
        lines += [f"    {phase.name} --> {each.name}" for each in sorted(following)]
        if not following:
            lines.append(f"    {phase.name} --> [*]")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
