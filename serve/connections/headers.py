"""Headers of the plain requests that the fast lane answers.

A header is listed if it cannot change what aiohttp's path would answer, other than by its value. Not listed are headers
that announce a body or request another kind of answer (Range, Origin, X-Request-Timeout-Ms). Offers to upgrade, as by
Java's client, are ignored.
"""

# The lane reads their values; each has a place in `lane.pyx`, by this order.
READ = (
    "Host", "Connection", "X-API-Key", "Authorization", "X-Request-Id", "If-None-Match", "traceparent", "tracestate",
)  # fmt: skip
IGNORED = (
    "Accept", "User-Agent", "Accept-Encoding", "Accept-Language", "Cache-Control", "Pragma", "Content-Type", "DNT",
    "Referer", "Priority", "Sec-GPC", "Sec-Fetch-Dest", "Sec-Fetch-Mode", "Sec-Fetch-Site", "Sec-Fetch-User",
    "Sec-CH-UA", "Sec-CH-UA-Mobile", "Sec-CH-UA-Platform", "X-Scheme", "X-Forwarded-Scheme", "X-Forwarded-Proto",
    "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-For", "X-Original-Forwarded-For", "X-Real-IP",
    "X-Forwarded-Client-Cert", "X-Envoy-Internal", "X-Envoy-Attempt-Count", "X-Envoy-Expected-Rq-Timeout-Ms",
    "Via", "Forwarded", "Cookie", "baggage", "b3", "X-B3-TraceId", "X-B3-SpanId", "X-B3-ParentSpanId",
    "X-B3-Sampled", "X-Amzn-Trace-Id", "X-Cloud-Trace-Context", "Upgrade", "HTTP2-Settings",
)  # fmt: skip
