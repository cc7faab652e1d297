"""Whatever is lost on the way, a report counts at most once, with the same bytes, and the device knows how it ended."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fedrecon.device_sdk.participation import Outcome
from support import device_bundle as bundle
from support.device_services import Services, play

PLAN = bundle.make_plan()
CALLS = ["CheckIn", "Join", "UploadStatus", "Upload", "FinishSession"]


def undisturbed() -> Services:
    services = Services(PLAN, bundle.make_assignment(PLAN))
    play(services)
    return services


WHOLE = undisturbed()


@settings(max_examples=150, deadline=None)
@given(
    lost=st.lists(st.sampled_from(CALLS), max_size=12),
    fetch_breaks_at=st.none() | st.integers(0, 4000),
    upload_breaks_at=st.none() | st.integers(0, 75),
)
def test_a_report_counts_at_most_once_and_with_the_same_bytes(
    lost: list[str], fetch_breaks_at: int | None, upload_breaks_at: int | None
) -> None:
    services = Services(PLAN, bundle.make_assignment(PLAN), lost)
    services.fetch_breaks_at = fetch_breaks_at
    services.upload_breaks_at = upload_breaks_at
    participation = play(services).participation
    if participation.outcome is Outcome.UPLOADED:
        assert services.acknowledged
        assert services.received == WHOLE.received
    else:
        assert participation.outcome in {Outcome.UNREACHABLE, Outcome.TOO_LATE}
    for name in ("CheckIn", "Join", "UploadStatus", "FinishSession"):
        assert len(set(services.bodies(name))) <= 1, f"{name} was repeated with other bytes"
    assert participation.receipt.bytes == sum(map(len, services.sent))
    if lost.count("CheckIn") < 4 and all(lost.count(name) < 8 for name in CALLS):
        assert participation.outcome is Outcome.UPLOADED
