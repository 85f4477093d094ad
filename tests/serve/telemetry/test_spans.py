"""Which requests are sampled, by the SDK's own decisions, and what the settings of every SDK say here."""

from functools import cache

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from hotplate.serve.settings import Sampling, TelemetrySettings, read_telemetry
from hotplate.serve.telemetry.tracing import Tracer

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{PARENT}-01"


@cache
def tracer(share: float, *, parent_based: bool = True) -> Tracer:
    return Tracer(TelemetrySettings("otlp", Sampling(share, parent_based=parent_based)), InMemorySpanExporter())


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
    begun = tracer(1.0, parent_based=False).begin(value.strip(" \t"), None)
    assert begun is not None
    assert (begun.context.trace_id == read.trace_id) == read.is_valid
    assert (tracer(0.0).begin(value.strip(" \t"), None) is not None) == (read.is_valid and read.trace_flags.sampled)


def headers_of_call(tracestate: str | None) -> list[bytes]:
    """Return the header lines for the call of a store in a sampled request."""
    begun = tracer(0.0).begin(SAMPLED, tracestate)
    assert begun is not None
    with begun.store_call("redis", 1, ()) as call:
        return call.headers.splitlines()


def test_context_is_propagated() -> None:
    traceparent, tracestate = headers_of_call("vendor=1")
    assert traceparent.startswith(f"traceparent: 00-{TRACE}-".encode())
    assert traceparent.endswith(b"-01")
    assert PARENT.encode() not in traceparent
    assert tracestate == b"tracestate: vendor=1"


def test_share_of_new_traces_is_sampled() -> None:
    some = tracer(0.3)
    taken = sum(some.begin(None, None) is not None for _ in range(1000))
    assert 200 < taken < 400


@given(st.integers(1, (1 << 128) - 1), st.sampled_from([0.0, 0.01, 0.3, 0.999, 1.0]))
def test_traces_of_callers_are_sampled_by_their_ids_like_by_the_sdk(trace_id: int, share: float) -> None:
    begun = tracer(share, parent_based=False).begin(f"00-{trace_id:032x}-{PARENT}-00", None)
    decision = TraceIdRatioBased(share).should_sample(None, trace_id, "").decision
    sampled = decision is Decision.RECORD_AND_SAMPLE
    if sampled:
        assert begun is not None
        assert begun.context.trace_id == trace_id
    assert sampled == (begun is not None)


@pytest.mark.parametrize("state", ["", "a" * 513, "b=\r\nx: y", "b=\udce4"])
def test_invalid_tracestate_is_not_propagated(state: str) -> None:
    assert len(headers_of_call(state)) == 1


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
