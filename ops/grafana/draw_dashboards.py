"""Draws the Grafana dashboards: `python ops/grafana/draw_dashboards.py` writes them to `dashboards/`.

Three of them, for three questions: do rounds go well, do services stand well, do users get good answers. Panels come in
the order in which an operator asks. What a task stands at is told by one coordinator, so `max by (task)`; what is
counted is summed over all replicas. docs/metrics.md says what every metric is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import bargauge, common, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.dashboard import Dashboard, DatasourceVariable, QueryVariable
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import BigValueGraphMode, StackingMode
from grafana_foundation_sdk.models.dashboard import DataSourceRef
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FOLDER = Path(__file__).with_name("dashboards")

_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_TASK = 'task=~"$task"'
_UPLOAD = 'grpc_method="fedrecon.v1.Aggregator/Upload"'
_QUANTILES = (0.5, 0.95, 0.99)
_SMALL, _HALF, _WHOLE = 6, 12, 24

Query = tuple[str, str]
"""An expression, and the legend of its series."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A panel.

    Attributes:
        title: What it shows.
        queries: What is asked.
        unit: Of its values, as Grafana names it.
        width: Of 24 columns.
        kind: `lines`, `stack`, `number`, `bars` or `heat`.
        why: What to see in it; also when there is nothing to see.
    """

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    width: int = _HALF
    kind: str = "lines"
    why: str = ""


def _quantiles(metric: str, by: str = "", matchers: str = "") -> tuple[Query, ...]:
    """Return the queries of a histogram's usual quantiles."""
    grouping, legend = (f"le, {by}", f" {{{{{by}}}}}") if by else ("le", "")
    series = f"{metric}_bucket{{{matchers}}}" if matchers else f"{metric}_bucket"
    return tuple(
        (f"histogram_quantile({q}, sum by ({grouping}) (rate({series}[$__rate_interval])))", f"p{q * 100:g}{legend}")
        for q in _QUANTILES
    )


def _rate(metric: str, by: str, matchers: str = "") -> Query:
    series = f"{metric}{{{matchers}}}" if matchers else metric
    return f"sum by ({by}) (rate({series}[$__rate_interval]))", f"{{{{{by}}}}}"


ROUNDS = (
    Drawn(
        "State of the round",
        ((f"max by (task, phase) (fedrecon_round_phase{{{_TASK}}}) == 1", "{{task}}: {{phase}}"),),
        width=_SMALL,
        kind="number",
        why="The phase of the round under way. Nothing between rounds.",
    ),
    Drawn(
        "Age of the last commit",
        ((f"task:fedrecon_commit_age:seconds{{{_TASK}}}", "{{task}}"),),
        "s",
        _SMALL,
        "number",
    ),
    Drawn(
        "Attempts committed, last hour",
        ((f"task:fedrecon_rounds_committed:ratio_increase1h{{{_TASK}}}", "{{task}}"),),
        "percentunit",
        _SMALL,
        "number",
    ),
    Drawn(
        "Privacy budget spent",
        (
            (f"task:fedrecon_privacy_spent:ratio{{{_TASK}}}", "{{task}}"),
            (f"max by (task) (fedrecon_privacy_epsilon{{{_TASK}}})", "{{task}}: epsilon"),
        ),
        "percentunit",
        _SMALL,
        "number",
        "Only tasks with privacy have a budget.",
    ),
    Drawn(
        "Rounds by outcome",
        (
            (
                f"sum by (task, outcome) (increase(fedrecon_rounds_total{{{_TASK}}}[$__rate_interval]))",
                "{{task}}: {{outcome}}",
            ),
            (f"max by (task) (fedrecon_round_current{{{_TASK}}})", "{{task}}: number"),
        ),
        kind="stack",
    ),
    Drawn(
        "Time of a round by phase, mean",
        (
            (
                (
                    f"sum by (phase) (rate(fedrecon_round_phase_seconds_sum{{{_TASK}}}[$__rate_interval]))"
                    f" / sum by (phase) (rate(fedrecon_round_phase_seconds_count{{{_TASK}}}[$__rate_interval]))"
                ),
                "{{phase}}",
            ),
            (f"max by (task) (fedrecon_round_window_seconds{{{_TASK}}})", "{{task}}: longest"),
        ),
        "s",
        kind="stack",
    ),
    Drawn(
        "Funnel: devices from check-in to checkpoint, last hour",
        (
            ("sum(increase(fedrecon_check_ins_total[1h]))", "checked in"),
            ('sum(increase(fedrecon_assignments_total{state="assigned"}[1h]))', "assigned"),
            (r'sum(increase(fedrecon_session_shapes_total{shape=~"-v\\[\\].*"}[1h]))', "trained"),
            ('sum(increase(fedrecon_reports_total{outcome="accepted"}[1h]))', "uploaded"),
            ('sum(increase(fedrecon_round_reports_total{fate="counted"}[1h]))', "aggregated"),
        ),
        kind="bars",
    ),
    Drawn(
        "Check-ins by outcome",
        (_rate("fedrecon_check_ins_total", "outcome"),),
        "reqps",
        kind="stack",
    ),
    Drawn(
        "Devices of the round under way",
        ((f"max by (task, state) (fedrecon_round_devices{{{_TASK}}})", "{{task}}: {{state}}"),),
    ),
    Drawn(
        "Drop-out, and what was assigned in excess",
        (
            (f"max by (task) (fedrecon_round_dropout_ratio{{{_TASK}}})", "{{task}}: drop-out"),
            (f"task:fedrecon_dropout_margin:ratio{{{_TASK}}}", "{{task}}: margin"),
            (f"max by (task) (fedrecon_round_overselection_ratio{{{_TASK}}})", "{{task}}: assigned per report wanted"),
        ),
        "percentunit",
        why="Drop-out above the margin: the goal of reports is missed.",
    ),
    Drawn(
        "How sessions end",
        (_rate("fedrecon_assignments_total", "state"),),
        "reqps",
        kind="stack",
    ),
    Drawn(
        "Time of a session on the device",
        _quantiles("fedrecon_session_seconds", matchers='state="uploaded"'),
        "s",
        why="From the assignment to the end that the device told.",
    ),
    Drawn("When devices are asked to come back", _quantiles("fedrecon_retry_window_seconds"), "s"),
    Drawn(
        "Bytes up and down",
        (
            ("sum(rate(fedrecon_report_bytes_sum[$__rate_interval]))", "up: reports"),
            ("sum(rate(fedrecon_download_bytes_total[$__rate_interval]))", "down: blobs"),
        ),
        "Bps",
    ),
    Drawn(
        "Reports by outcome, and uploads taken up again",
        (
            _rate("fedrecon_reports_total", "outcome"),
            ("sum(rate(fedrecon_upload_chunks_resumed_total[$__rate_interval]))", "chunks not sent again"),
            ("sum(rate(fedrecon_secure_sum_voided_total[$__rate_interval]))", "made void"),
            (f"sum by (fate) (rate(fedrecon_round_reports_total{{{_TASK}}}[$__rate_interval]))", "of rounds: {{fate}}"),
        ),
        "reqps",
    ),
    Drawn(
        "Updates refused, by reason",
        (_rate("fedrecon_update_rejected_total", "reason"), ("fedrecon_reports_refused:ratio_rate10m", "share")),
        why="Reasons beside the shape only under `trusted`.",
    ),
    Drawn(
        "Norms of updates",
        (("sum by (le) (increase(fedrecon_update_norm_bucket[$__rate_interval]))", "{{le}}"),),
        kind="heat",
        why="Only under `trusted`: a masked sum hides them.",
    ),
    Drawn(
        "Norm of the mean update",
        ((f"max by (task) (fedrecon_sum_norm{{{_TASK}}})", "{{task}}"),),
    ),
    Drawn(
        "Loss, and error on unseen users",
        (
            (f"max by (task) (fedrecon_train_loss{{{_TASK}}})", "{{task}}: training loss"),
            (f"max by (task, cohort) (fedrecon_eval_rmse{{{_TASK}}})", "{{task}}: RMSE, {{cohort}}"),
            (f"max by (task, k) (fedrecon_eval_recall_at_k{{{_TASK}}})", "{{task}}: recall@{{k}}"),
        ),
        why="Unseen users only with evaluation rounds; no loss under privacy.",
    ),
    Drawn(
        "Session shapes, last hour",
        (("topk(12, sum by (shape) (increase(fedrecon_session_shapes_total[1h])) > 0)", "{{shape}}"),),
        kind="bars",
        why="- checked in, v fetched, [ trained ], + uploaded, ^ acknowledged; ! an error, # given up.",
    ),
    Drawn(
        "Sessions that reported, by kind of device, last day",
        (
            ("activity:fedrecon_sessions_reported:ratio_increase1d", "{{activity}} examples"),
            ("device_class:fedrecon_sessions_reported:ratio_increase1d", "{{device_class}} class"),
        ),
        "percentunit",
        kind="bars",
        why="Only of apps that tell the class, and in steps of 20 sessions. Who vanished is missing.",
    ),
    Drawn(
        "Sessions by kind of device",
        (
            (
                "sum by (activity, end) (increase(fedrecon_sessions_by_activity_total[1h]))",
                "{{activity}} examples: {{end}}",
            ),
            (
                "sum by (device_class, end) (increase(fedrecon_sessions_by_device_class_total[1h]))",
                "{{device_class}} class: {{end}}",
            ),
        ),
        why="Only of apps that tell the class, and in steps of 20 sessions.",
    ),
    Drawn(
        "Devices by version of the SDK", (("sum by (version) (fedrecon_device_versions)", "{{version}}"),), kind="stack"
    ),
)

SERVICES = (
    Drawn("Services that answer", (('up{job="fedrecon"}', "{{role}} {{instance}}"),), width=_SMALL, kind="number"),
    Drawn(
        "Storage that answers", (("min by (store) (fedrecon_storage_up)", "{{store}}"),), width=_SMALL, kind="number"
    ),
    Drawn(
        "Certificates expire in",
        (("min by (role) (fedrecon_certificate_expiry_timestamp_seconds) - time()", "{{role}}"),),
        "s",
        _SMALL,
        "number",
        "Only with TLS.",
    ),
    Drawn(
        "Versions",
        (("count by (service, version) (fedrecon_build_info)", "{{service}} {{version}}"),),
        width=_SMALL,
        kind="number",
    ),
    Drawn(
        "Aggregators: bytes that wait",
        (("sum by (instance) (fedrecon_aggregator_pending_bytes)", "{{instance}}"),),
        "bytes",
    ),
    Drawn("Memory", (("process_resident_memory_bytes", "{{role}} {{instance}}"),), "bytes"),
    Drawn("Processor", (("rate(process_cpu_seconds_total[$__rate_interval])", "{{role}} {{instance}}"),)),
    Drawn(
        "Restarts, and reports found again",
        (
            ("changes(process_start_time_seconds[1h])", "{{role}} {{instance}}: starts, last hour"),
            ("fedrecon_aggregator_recovered_reports_total", "{{instance}}: reports found again"),
        ),
    ),
    Drawn(
        "Masked groups: members after a phase, and lost in it",
        (
            ("max by (phase) (fedrecon_secure_sum_clients)", "after {{phase}}"),
            (
                "sum by (phase) (increase(fedrecon_secure_sum_dropouts_total[$__rate_interval]))",
                "lost in {{phase}}",
            ),
        ),
        why="Only under a masked sum.",
    ),
    Drawn(
        "Masked groups: time of a phase",
        _quantiles("fedrecon_secure_sum_seconds", "phase"),
        "s",
        why="Only under a masked sum.",
    ),
    Drawn("Calls by method", (_rate("fedrecon_grpc_server_handled_total", "grpc_method"),), "reqps", kind="stack"),
    Drawn(
        "Calls by code, without OK",
        (
            _rate("fedrecon_grpc_server_handled_total", "grpc_code", 'grpc_code!="OK"'),
            ("role:fedrecon_calls_failed:ratio_rate10m", "{{role}}: share that is our fault"),
        ),
        "reqps",
    ),
    Drawn("Time of calls", _quantiles("fedrecon_grpc_server_handling_seconds", "grpc_method")[2:], "s"),
    Drawn(
        "Time of uploads",
        (
            *_quantiles("fedrecon_grpc_server_handling_seconds", matchers=_UPLOAD),
            ("fedrecon_upload_seconds:p99_rate10m", "p99, ten minutes"),
        ),
        "s",
    ),
    Drawn("Time of storage", _quantiles("fedrecon_storage_seconds", "store", 'outcome="ok"'), "s"),
    Drawn(
        "Storage that failed, by outcome",
        (
            (
                'sum by (store, outcome) (rate(fedrecon_storage_seconds_count{outcome!="ok"}[$__rate_interval]))',
                "{{store}}: {{outcome}}",
            ),
        ),
        "ops",
    ),
    Drawn(
        "Storage that is used",
        (("max by (store) (fedrecon_storage_used_ratio)", "{{store}}"),),
        "percentunit",
        why="Of blobs only where they lie in a folder.",
    ),
    Drawn(
        "Clocks, against the journal's",
        (
            ("fedrecon_clock_skew_seconds", "{{role}} {{instance}}"),
            ("fedrecon_clocks_apart:seconds", "farthest apart"),
        ),
        "s",
    ),
    Drawn("Time of a scrape", (('scrape_duration_seconds{job="fedrecon"}', "{{role}} {{instance}}"),), "s"),
)

SERVING = (
    Drawn(
        "Checkpoint served, and live",
        (
            (f"min by (task) (fedrecon_served_model_version{{{_TASK}}})", "{{task}}: served, oldest replica"),
            (f"max by (task) (fedrecon_model_version{{{_TASK}}})", "{{task}}: live"),
        ),
        width=_SMALL,
        kind="number",
    ),
    Drawn(
        "Staleness",
        ((f"max by (task) (fedrecon_model_staleness_seconds{{{_TASK}}})", "{{task}}"),),
        "s",
        _SMALL,
        "number",
        "For how long another checkpoint has been live than the one that is served.",
    ),
    Drawn(
        "Size of recommender and checkpoint",
        (
            (f"max by (task) (fedrecon_served_model_bytes{{{_TASK}}})", "{{task}}: recommender"),
            (f"max by (task) (fedrecon_model_bytes{{{_TASK}}})", "{{task}}: checkpoint"),
        ),
        "bytes",
        _SMALL,
        "number",
    ),
    Drawn(
        "Exports, last day",
        (("sum by (outcome) (increase(fedrecon_export_total[1d]))", "{{outcome}}"),),
        width=_SMALL,
        kind="number",
    ),
    Drawn(
        "Recommendations",
        (('sum(rate(fedrecon_recommend_seconds_count{stage="model"}[$__rate_interval]))', "a second"),),
        "reqps",
    ),
    Drawn("Time of a recommendation, by stage", _quantiles("fedrecon_recommend_seconds", "stage"), "s"),
    Drawn(
        "Calls to inference, by code",
        (
            (
                'sum by (grpc_code) (rate(fedrecon_grpc_server_handled_total{role="inference"}[$__rate_interval]))',
                "{{grpc_code}}",
            ),
        ),
        "reqps",
    ),
    Drawn(
        "Error on unseen users",
        (
            (f"max by (task) (fedrecon_eval_rmse{{{_TASK}}})", "{{task}}: RMSE"),
            (f"max by (task, k) (fedrecon_eval_recall_at_k{{{_TASK}}})", "{{task}}: recall@{{k}}"),
        ),
        why="Only with evaluation rounds.",
    ),
)

DASHBOARDS: dict[str, tuple[str, str, tuple[Drawn, ...]]] = {
    "rounds": ("fedrecon: rounds", "Do rounds go well, and if not, where do devices get lost?", ROUNDS),
    "services": ("fedrecon: services", "Do services, storage and clocks stand well?", SERVICES),
    "serving": ("fedrecon: serving", "Do users get good answers, soon, from the newest checkpoint?", SERVING),
}


def _number() -> Any:
    return stat.Panel().graph_mode(BigValueGraphMode.NONE).height(5)


def _lines() -> Any:
    return timeseries.Panel().fill_opacity(8).height(8)


def _stack() -> Any:
    stacked = common.StackingConfig().mode(StackingMode.NORMAL)
    return timeseries.Panel().fill_opacity(40).stacking(stacked).height(8)


def _bars() -> Any:
    return bargauge.Panel().height(8)


def _heat() -> Any:
    return heatmap.Panel().calculate(False).color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME)).height(8)


_KINDS: dict[str, Callable[[], Any]] = {
    "number": _number,
    "lines": _lines,
    "stack": _stack,
    "bars": _bars,
    "heat": _heat,
}


def draw(name: str) -> str:
    """Return a dashboard as Grafana reads it.

    Args:
        name: One of `DASHBOARDS`.
    """
    title, question, panels = DASHBOARDS[name]
    drawing = (
        Dashboard(title)
        .uid(f"fedrecon-{name}")
        .description(question)
        .tags(["fedrecon"])
        .timezone("browser")
        .refresh("30s")
        .time("now-3h", "now")
        .with_variable(DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    if any(_TASK in expression for panel in panels for expression, _ in panel.queries):
        tasks = QueryVariable("task").label("task").query("label_values(fedrecon_task_running, task)")
        drawing = drawing.with_variable(tasks.datasource(_SOURCE).multi(True).include_all(True).all_value(".*"))
    for panel in panels:
        drawing = drawing.with_panel(_panel(panel))
    return JSONEncoder(sort_keys=True, indent=2).encode(drawing.build()) + "\n"


def _panel(panel: Drawn) -> Any:
    made = _KINDS[panel.kind]().title(panel.title).datasource(_SOURCE).unit(panel.unit).span(panel.width)
    if panel.why:
        made = made.description(panel.why)
    for place, (expression, legend) in enumerate(panel.queries):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(chr(ord("A") + place))
        if panel.kind == "heat":
            query = query.format(PromQueryFormat.HEATMAP)
        made = made.with_target(query.instant() if panel.kind in {"number", "bars"} else query.range())
    return made


if __name__ == "__main__":
    for dashboard in DASHBOARDS:
        (FOLDER / f"{dashboard}.json").write_text(draw(dashboard))
