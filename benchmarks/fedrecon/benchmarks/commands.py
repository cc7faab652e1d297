"""`fedrecon bench`: measure what is promised."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedrecon.ops.printing import print_json

bench = typer.Typer(help="Measure what is promised.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object as the last line")]


@bench.callback()
def _bench() -> None:
    """Measure what is promised."""


@bench.command("check-in")
def check_in(as_json: AsJson = False) -> None:
    """Let cohorts check in to a coordinator at once, and call a bare gRPC server as often."""
    from fedrecon.benchmarks.check_in import measure_check_in
    from fedrecon.benchmarks.measures import result_of

    _print(result_of("check-in", measure_check_in()), as_json=as_json)


@bench.command()
def device(as_json: AsJson = False) -> None:
    """Run a device's rounds on users with few and many ratings: time, and bytes both ways."""
    from fedrecon.benchmarks.device import measure_device
    from fedrecon.benchmarks.measures import result_of

    _print(result_of("device", measure_device()), as_json=as_json)


@bench.command()
def footprint(as_json: AsJson = False) -> None:
    """Build the device wheel, install it into a bare environment, weigh it and time its import."""
    from fedrecon.benchmarks.footprint import measure_footprint
    from fedrecon.benchmarks.measures import result_of

    _print(result_of("footprint", measure_footprint()), as_json=as_json)


@bench.command("footprint-peers")
def footprint_peers(
    python: Annotated[Path, typer.Option("--python", help="the Python of an environment that has Flower only")],
    as_json: AsJson = False,
) -> None:
    """Weigh Flower's client and time its import, as ours is."""
    from fedrecon.benchmarks.footprint import measure_peer_footprint
    from fedrecon.benchmarks.measures import result_of

    _print(result_of("footprint-peers", measure_peer_footprint(python)), as_json=as_json)


@bench.command()
def ingest(as_json: AsJson = False) -> None:
    """Upload reports to an aggregator, and to a bare gRPC server that discards them; weigh its memory."""
    from fedrecon.benchmarks.ingest import measure_ingest
    from fedrecon.benchmarks.measures import result_of

    _print(result_of("ingest", measure_ingest()), as_json=as_json)


@bench.command()
def quality(
    data: Annotated[
        Path | None,
        typer.Option(envvar="FEDRECON_DATA", help="folder of MovieLens ratings; made-up ratings where there is none"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train, export and judge the file on all users never seen: in stars, and by its ten best."""
    from fedrecon.benchmarks.measures import result_of
    from fedrecon.benchmarks.quality import measure_quality

    _print(result_of("quality", measure_quality(data)), as_json=as_json)


@bench.command()
def recommend(
    package: Annotated[
        Path | None,
        typer.Option("--python", help="the Python of an environment with the `implicit` package, to compare with"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Recommend to users never seen: one at a time on one core, and by the service."""
    from fedrecon.benchmarks.measures import result_of
    from fedrecon.benchmarks.recommend import measure_recommend

    _print(result_of("recommend", measure_recommend(package)), as_json=as_json)


@bench.command()
def simulation(
    data: Annotated[
        Path | None,
        typer.Option(envvar="FEDRECON_DATA", help="folder of MovieLens ratings; made-up ratings where there is none"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run simulated rounds of small and large cohorts, and count client updates a second."""
    from fedrecon.benchmarks.measures import result_of
    from fedrecon.benchmarks.simulation import measure_simulation

    _print(result_of("simulation", measure_simulation(data)), as_json=as_json)


@bench.command()
def pacing(
    plot: Annotated[Path | None, typer.Option("--plot", help="where a chart of check-ins a minute is written")] = None,
    as_json: AsJson = False,
) -> None:
    """Simulate two days of check-ins of a small and a large population."""
    from fedrecon.benchmarks.measures import result_of
    from fedrecon.benchmarks.pacing import measure_pacing

    _print(result_of("pacing", measure_pacing(plot)), as_json=as_json)


@bench.command("secure-sum")
def secure_sum(as_json: AsJson = False) -> None:
    """Open masked sums of several sizes: time on a device and on the aggregator, bytes, and a plain sum."""
    from fedrecon.benchmarks.measures import result_of
    from fedrecon.benchmarks.secure_sum import measure_secure_sum

    _print(result_of("secure-sum", measure_secure_sum()), as_json=as_json)


@bench.command()
def leakage(
    data: Annotated[
        Path | None,
        typer.Option(envvar="FEDRECON_DATA", help="folder of MovieLens ratings; made-up ratings where there is none"),
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="where a chart of users exposed is written")] = None,
    as_json: AsJson = False,
) -> None:
    """Attack sums of several sizes, without and with public row sets, and count the users they give away."""
    from fedrecon.benchmarks.leakage import measure_leakage
    from fedrecon.benchmarks.measures import result_of

    _print(result_of("leakage", measure_leakage(data, plot)), as_json=as_json)


@bench.command("secure-sum-peers")
def secure_sum_peers(
    python: Annotated[Path, typer.Option("--python", help="the Python of an environment that has Flower")],
    as_json: AsJson = False,
) -> None:
    """Run the SecAgg+ functions of Flower at the same sizes as ours."""
    from fedrecon.benchmarks.measures import result_of
    from fedrecon.benchmarks.secure_sum_peers import measure_peers

    _print(result_of("secure-sum-peers", measure_peers(python)), as_json=as_json)


def _print(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    table = Table("measure", "value", "unit", "target", "holds", title=result["name"])
    for measure in result["measures"]:
        holds = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}[measure["holds"]]
        table.add_row(measure["name"], f"{measure['value']:.4g}", measure["unit"], measure["target"] or "", holds)
    Console().print(table)
