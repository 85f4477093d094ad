"""Which requests are sampled, by the SDK's own decisions, and what the settings of every SDK say here."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from hotplate.serve.settings import Sampling, TelemetrySettings, read_telemetry
from hotplate.serve.telemetry.spans import HALF, Span, Tracer

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{PARENT}-01"


def ignore(span: Span) -> None:
    """Take a span for nothing."""


def settings(destination: str = "otlp", **environment: str) -> TelemetrySettings | None:
    return read_telemetry("otlp" if destination == "otlp" else "azure-monitor", environment)


@given(
    st.builds(
        "{}-{}-{}-{}{}".format,
        st.sampled_from(["00", "01", "ff", "0", "zz"]),
        st.sampled_from([TRACE, "0" * 32, TRACE.upper(), TRACE[:-1]]),
        st.sampled_from([PARENT, "0" * 16, PARENT[:-1]]),
        st.sampled_from(["00", "01", "02", "03", "fe", "ff", "1", "x1"]),
        st.sampled_from(["", "-", "-more", "more", " "]),
    )
    | st.text("0123456789abcdef-", max_size=60)
)
@example(SAMPLED)
def test_traceparent_is_parsed_like_the_sdk(value: str) -> None:
    context = TraceContextTextMapPropagator().extract({"traceparent": value.strip(" \t")})
    read = trace.get_current_span(context).get_span_context()
    always, never = (Tracer(Sampling(share, parent_based=share == 0), ignore) for share in (1.0, 0.0))
    catalogue = always.begin(value.strip(" \t"), None)
    assert catalogue is not None
    assert (catalogue.parent_id is not None) == read.is_valid
    if read.is_valid:
        assert (catalogue.trace_id, catalogue.parent_id) == (read.trace_id, read.span_id)
    assert (never.begin(value.strip(" \t"), None) is not None) == (read.is_valid and read.trace_flags.sampled)


def test_share_of_new_traces_is_sampled_and_context_is_propagated() -> None:
    begun = Tracer(Sampling(0.0, parent_based=True), ignore).begin(SAMPLED, "vendor=1")
    assert begun is not None
    assert begun.headers(7) == f"traceparent: 00-{TRACE}-{7:016x}-01\r\ntracestate: vendor=1\r\n".encode()
    some = [Tracer(Sampling(0.3, parent_based=True), ignore).begin(None, None) for _ in range(1000)]
    taken = [span for span in some if span is not None]
    assert 200 < len(taken) < 400
    assert all(span.trace_id & HALF < 0.3 * HALF for span in taken)


@pytest.mark.parametrize("state", ["", "a" * 513, "b=\r\nx: y", "b=\udce4"])
def test_invalid_tracestate_is_not_propagated(state: str) -> None:
    begun = Tracer(Sampling(1.0, parent_based=True), ignore).begin(SAMPLED, state)
    assert begun is not None
    assert begun.headers(1).count(b"\r\n") == 1


def test_standard_sdk_variables_are_settings() -> None:
    assert read_telemetry(None, {}) is None
    assert settings(OTEL_SDK_DISABLED="true") is None
    usual = settings()
    assert usual is not None
    own = {"instance": usual.instance, "started_ns": usual.started_ns}
    assert usual == TelemetrySettings("otlp", Sampling(1.0, parent_based=True), **own)  # type: ignore[arg-type]
    ratio = settings(OTEL_TRACES_SAMPLER="parentbased_traceidratio", OTEL_TRACES_SAMPLER_ARG="0.01")
    assert ratio is not None
    assert ratio.sampling == Sampling(0.01, parent_based=True)
    off = settings(OTEL_TRACES_SAMPLER="always_off", OTEL_METRICS_EXPORTER="none", OTEL_TRACES_EXPORTER="none")
    assert off is not None
    assert (off.sampling, off.metrics, off.traces) == (Sampling(0.0, parent_based=False), False, False)
