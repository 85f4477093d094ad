"""What describes the service: health, the OpenAPI document, generated from the routes, and its Swagger UI page."""

import re
from importlib.metadata import version

import msgspec
import openapi_ui_bundles
import orjson
from aiohttp import web

from hotplate.base.recommendations import Item
from hotplate.serve.api.handlers import NO_STORE, conditional
from hotplate.serve.api.routes import EVENTS_TAG, HTML, JSON, OPERATIONS, TEXT, Operation, Schema
from hotplate.serve.api.schemas import NoQuery, ProblemAnswer
from hotplate.serve.lists.options import Id
from hotplate.serve.problems import CONTENT_TYPE, Problem
from hotplate.serve.processes.readiness import WorkerReadiness

SCRIPT = "text/javascript"
STYLE = "text/css"
PNG = "image/png"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Relative addresses: a proxy may serve it below a prefix.
PAGE = b"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>hotplate</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="stylesheet" href="docs/contrast.css">
<link rel="icon" type="image/png" href="docs/favicon-32x32.png">
</head>
<body>
<main>
<h1>hotplate's API</h1>
<div id="page"></div>
</main>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
START = b'SwaggerUIBundle({url: "openapi.json", dom_id: "#page", deepLinking: true, validatorUrl: null});\n'
# Colours of Swagger UI that are too pale for WCAG's contrast of 4.5.
CONTRAST = b"""\
h1 {
  margin: 0;
  padding: 16px 20px 0;
  font: 600 16px sans-serif;
}
.swagger-ui .info .title small { background: #5a6270; }
.swagger-ui .info .title small.version-stamp { background: #4b6a02; }
.swagger-ui .info .link .url { color: #1f66c1; }
.swagger-ui .btn.authorize { border-color: #18794e; color: #18794e; }
.swagger-ui .btn.authorize span { color: inherit; }
.swagger-ui .btn.authorize svg { fill: #18794e; }
.swagger-ui .opblock.opblock-get .opblock-summary-method { background: #0b63b5; }
.swagger-ui .opblock.opblock-post .opblock-summary-method { background: #18794e; }
.swagger-ui .parameter__in { color: #5c5c5c; }
.swagger-ui .microlight span[style*="211, 99, 99"] { color: #ffa0a0 !important; }
.swagger-ui .json-schema-2020-12-expand-deep-button { color: #5c5c5c; }
"""
FILES = {
    "start.js": SCRIPT,
    "contrast.css": STYLE,
    "swagger-ui-bundle.js": SCRIPT,
    "swagger-ui.css": STYLE,
    "favicon-32x32.png": PNG,
}
ALWAYS_ASKED = "no-cache"
# For the page's files, which change only with the program.
KEPT = "public, max-age=604800"

SCHEMAS, RESPONSES = "#/components/schemas/", "#/components/responses/"
DESCRIPTION = """\
Precomputed recommendations, out of one release at a time. An unknown user gets the popular list; only filters that no
item meets make a list empty.

Errors are problems (RFC 9457) with a stable `type`. Every `GET` is a `HEAD`, too.\
"""
STATUSES = {
    304: "The caller's copy is current (`If-None-Match`).",
    400: "The request is invalid; `detail` gives the reason.",
    401: "A key is required, or the given one is unknown.",
    403: "The key may not do this.",
    404: "The release has no list of this name.",
    413: "The body is too large.",
    415: "The body is compressed, or not of a type that the route takes.",
    429: "The client's rate limit is used up.",
    431: "Path, query and headers are too large together.",
    503: "No release is live yet, or the service is overloaded.",
}
KEYS: Schema = {
    "Key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "Bearer": {"type": "http", "scheme": "bearer"},
}


class ServiceHandlers:
    """Handlers of health, the document and its page."""

    def __init__(self, readiness: WorkerReadiness, *, takes_key: bool, takes_events: bool = False) -> None:
        self._readiness = readiness
        self._takes_key = takes_key
        self._takes_events = takes_events
        self._files = {"start.js": START, "contrast.css": CONTRAST}
        self._document = b""

    async def live(self, _request: web.BaseRequest, _raw_id: str, _raw_query: str) -> web.Response:
        """`GET /livez`: the process answers."""
        return _status(200, "alive")

    async def ready(self, _request: web.BaseRequest, _raw_id: str, _raw_query: str) -> web.Response:
        """`GET /readyz`: lists can be answered."""
        status = self._readiness.check().status
        return _status(status.probe_code, status)

    async def openapi(self, request: web.BaseRequest, _raw_id: str, _query: NoQuery) -> web.Response:
        """`GET /openapi.json`."""
        if not self._document:
            self._document = orjson.dumps(document(takes_key=self._takes_key, takes_events=self._takes_events))
        return unless_known(request, self._document, JSON, ALWAYS_ASKED)

    async def page(self, request: web.BaseRequest, _raw_id: str, _query: NoQuery) -> web.Response:
        """`GET /docs`."""
        return page_response(request, PAGE, f"{HTML}; charset=utf-8")

    async def file(self, request: web.BaseRequest, name: str, _: str) -> web.Response:
        """`GET /docs/{file}`: a file of the page, such as a script; a bundled one is read at its first request."""
        if name not in FILES:
            raise Problem(404, "no-such-route", "the page has no such file")
        if name not in self._files:
            self._files[name] = (openapi_ui_bundles.swagger_ui.static_path / name).read_bytes()
        return unless_known(request, self._files[name], FILES[name], KEPT)


def document(*, takes_key: bool, takes_events: bool = False) -> Schema:
    """Return the OpenAPI 3.1 document of the service, as nested dicts.

    *takes_key* tells whether reads need a key, and *takes_events* whether the service accepts events.
    """
    schemas = Schema()  # by the name of the type; the functions below add the types that they refer to
    paths = dict[str, Schema]()

    operations = [operation for operation in OPERATIONS if operation.summary]
    if not takes_events:
        operations = [operation for operation in operations if operation.tag != EVENTS_TAG]
    for operation in operations:
        described = _describe_operation(operation, schemas) | {"tags": [operation.tag]}
        if operation.scope is None:
            described["security"] = []
        methods = paths.setdefault(operation.path, {})
        methods[operation.method.lower()] = described

    # The attributes that were asked for.
    schemas[Item.__name__]["additionalProperties"] = True

    security: list[Schema] = [{name: []} for name in KEYS]
    if not takes_key:
        security.insert(0, {})  # an empty requirement makes keys optional

    return {
        "openapi": "3.1.0",
        "info": {"title": "hotplate", "version": version("hotplate"), "description": DESCRIPTION},
        "tags": [{"name": tag} for tag in dict.fromkeys(operation.tag for operation in operations)],
        "security": security,
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": KEYS,
            "responses": _shared_responses(schemas),
        },
    }


def _shared_responses(schemas: Schema) -> Schema:
    """Return the response objects of OpenAPI to which operations refer, by status: 304, and the errors.

    The type of an error's body, a problem, is added to *schemas*.
    """
    problem = {CONTENT_TYPE: {"schema": _schema(ProblemAnswer, schemas)}}
    retry_after = {"description": "After how many seconds to try again.", "schema": {"type": "integer"}}

    responses = Schema()
    for status, text in STATUSES.items():
        response: Schema = {"description": text}
        if status >= 400:
            response["content"] = problem
        if status in {429, 503}:
            response["headers"] = {"Retry-After": retry_after}
        responses[str(status)] = response
    return responses


def _schema(kind: object, components: Schema) -> Schema:
    (schema,), parts = msgspec.json.schema_components([kind], ref_template=SCHEMAS + "{name}")
    components |= parts
    return schema


def _describe_operation(operation: Operation, schemas: Schema) -> Schema:
    """Return the operation object of OpenAPI for one method of a path.

    The types of its body and its answer are added to *schemas*. The id is made of method and path:
    get_v1_recommendations_user is that of "GET /v1/recommendations/{user}".
    """
    words = re.findall(r"\w+", operation.path)
    described: Schema = {
        "operationId": "_".join([operation.method.lower(), *words]),
        "summary": operation.summary,
        "responses": _responses(operation, schemas),
    }

    parameters = _query_parameters(operation)
    _, _, identifier = operation.path.partition("{")
    if identifier:
        described_id = {"in": "path", "required": True, "schema": _schema(Id, schemas), "example": "42"}
        parameters.insert(0, {"name": identifier.rstrip("}"), **described_id})
    if parameters:
        described["parameters"] = parameters

    if operation.body is not None:
        content = dict[str, Schema]()
        for media_type in operation.media:
            content[media_type] = {}
            if media_type == JSON:
                content[media_type] = {"schema": _schema(operation.body, schemas), "example": operation.example}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _responses(operation: Operation, schemas: Schema) -> Schema:
    """Return the responses of an operation by status: its answer for 200, and references to shared responses.

    503 of a health route is no error, but has the same body as 200. The answer's type is added to *schemas*.
    """
    # By media type; a schema is for JSON and text, not for others such as msgpack.
    content = dict[str, Schema]()
    for media_type in operation.media:
        content[media_type] = {}
        if media_type in {JSON, TEXT}:
            content[media_type] = {"schema": _schema(operation.answer, schemas)}

    responses = Schema()
    for status in sorted(operation.statuses):
        if status in operation.answered:
            responses[str(status)] = {"description": operation.summary, "content": content}
        else:
            responses[str(status)] = {"$ref": f"{RESPONSES}{status}"}
    return responses


def _query_parameters(operation: Operation) -> list[Schema]:
    """Return the parameter objects of OpenAPI for the query string of an operation, one per field of its query type."""
    if operation.query is None:
        return []
    _, components = msgspec.json.schema_components([operation.query])  # JSON schemas by the name of the type

    parameters = list[Schema]()
    for name, schema in components[operation.query.__name__]["properties"].items():
        if name in operation.without:
            continue
        parameter = {"name": name, "in": "query", "description": schema.pop("description"), "schema": schema}
        if schema.get("type") == "array":
            parameter |= {"style": "form", "explode": False}  # values are separated by commas
        parameters.append(parameter)
    return parameters


def _status(code: int, status: str) -> web.Response:
    headers = {"Content-Type": JSON, "Cache-Control": NO_STORE}
    return web.Response(status=code, body=orjson.dumps({"status": status}), headers=headers)


def page_response(request: web.BaseRequest, body: bytes, media: str) -> web.Response:
    """Answer with a page or a file of it, which may load nothing from elsewhere, or with 304 if the caller has it."""
    response = unless_known(request, body, media, ALWAYS_ASKED)
    response.headers["Content-Security-Policy"] = PAGE_POLICY
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


def unless_known(request: web.BaseRequest, body: bytes, media: str, cache: str) -> web.Response:
    """Answer with *body*, or with 304 if the caller has it."""
    return conditional(
        request, body, {"Content-Type": media, "Cache-Control": cache, "X-Content-Type-Options": "nosniff"}
    )
