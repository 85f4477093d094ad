"""The planner as a page on loopback (`hotplate plan --open`).

The page computes nothing itself. At each change of a form field it requests the plan of the query in its address, and
shows what the command prints for the same inputs. The address contains a random token, the Host header is checked, and
no request changes anything.
"""

import asyncio
import secrets
import shlex
import socket
import webbrowser
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web

from hotplate.base.report import Report
from hotplate.base.report_page import STYLE_SHEET, other_figures, summary
from hotplate.base.report_plots import draw
from hotplate.bench.errors import BenchMisused
from hotplate.bench.planner.inputs import DAY_SHAPES, INPUT_FIELDS, PLACEHOLDER_LOAD, InputSource, label_of, merge
from hotplate.bench.planner.pictures import pictures
from hotplate.bench.planner.plan import CapacityPlan, calculate
from hotplate.bench.planner.plan_report import report
from hotplate.bench.planner.prices import Prices
from hotplate.bench.planner.saved_plan import to_toml
from hotplate.stores.cosmos.charges import Charges

HOST = "127.0.0.1"
FILES = {file.name: file for file in (*(files("hotplate.bench.planner") / "page").iterdir(), STYLE_SHEET)}
MEDIA = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
# Plots have inline styles; everything else comes from this server.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# The page's inputs; others keep the values given to the command.
FORM = (
    "users", "peak_rps", "profile", "zipf", "hit_rate", "regions", "consistency", "list_length", "encoding",
    "refresh_hours", "window_hours",
)  # fmt: skip
# Shown if neither the command nor the query names a load.
EXAMPLE = {"users": "1000000", "peak_rps": "500"}

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerPage:
    """Plans for the inputs in the page's query, which replace inputs that the command was given.

    layers   inputs that the command was given, from files, a report or a release; later ones win
    options  the options that named *layers* and prices, to print the equivalent command
    sweep    a report of `hotplate bench ru` to plot
    """

    layers: Sequence[InputSource]
    prices: Prices
    prices_name: str
    charges: Charges
    options: Sequence[str] = ()
    sweep: Report | None = None

    def fields(self, query: str) -> list[dict[str, Any]]:
        """Return the fields of the page's form, as JSON, with the values that the inputs in *query* give them.

        A field has the name of an input, a label, the choices of its value, and whether others are allowed.
        An input of the query keeps its text, perhaps to be corrected.
        """
        values = self._inputs_in(query)
        inputs = merge([InputSource("example", EXAMPLE), *self.layers]).inputs
        return [
            {
                "name": name,
                "label": label_of(INPUT_FIELDS[name]),
                "choices": list(DAY_SHAPES if name == "profile" else INPUT_FIELDS[name].metadata["choices"]),
                "free": name == "profile",
                "value": values.get(name, _text_of(getattr(inputs, name))),
            }
            for name in FORM
        ]

    def answer(self, query: str) -> dict[str, Any]:
        """Return what the page shows of a plan, as JSON: the report, partly as HTML, the same as a command and as TOML.

        *query* has the inputs, as "users=1M&peak_rps=500". Raises BenchMisused for an invalid one.
        """
        values = self._inputs_in(query)
        plan = self._calculate(values)
        planned = report(plan, self.prices_name)
        return {
            "answer": planned.sentence,
            "complaints": planned.complaints,
            "notes": planned.notes,
            "summary": summary(planned),
            "figures": other_figures(planned),
            "command": self.command(values),
            "toml": to_toml(plan),
        }

    def pictures(self, query: str) -> list[dict[str, str]]:
        """Return the plan's plots as SVG elements."""
        plots = pictures(self._calculate(self._inputs_in(query)), self.sweep)
        return [{"title": plot.title, "svg": draw(plot), "caption": plot.caption} for plot in plots]

    def command(self, values: Mapping[str, str]) -> str:
        """Return the command that prints the plan of inputs by name."""
        words = ["hotplate", "plan", *self.options]
        for name, value in values.items():
            if INPUT_FIELDS[name].metadata["panel"]:
                words += [f"--{name.replace('_', '-')}", value]
            else:
                words += ["--set", f"{name}={value}"]
        return shlex.join(words)

    def _inputs_in(self, query: str) -> dict[str, str]:
        """Return the inputs in *query*, as "users=1M&peak_rps=500", by name.

        If neither the query nor the command names a load, that of EXAMPLE is added.
        """
        values = dict(parse_qsl(query.removeprefix("?")))
        names = set(values).union(*(layer.values for layer in self.layers))
        if names.isdisjoint(PLACEHOLDER_LOAD):
            values = EXAMPLE | values
        return values

    def _calculate(self, values: Mapping[str, str]) -> CapacityPlan:
        query = InputSource("page", values, "{name}")
        return calculate(merge([*self.layers, query]), self.prices, self.charges)


def _text_of(value: object) -> object:
    """Return the value of a field; a profile of 24 rates is one text."""
    return ", ".join(f"{rate:g}" for rate in value) if isinstance(value, tuple) else value


def application(page: PlannerPage, token: str) -> web.Application:
    """Return a web application with the page's files, and with JSON of its form's fields, the plan, and plots.

    All paths begin with the secret *token*, so that no other page can request them. Another user of the machine can,
    who reads the token in the list of processes: a browser that is opened has the URL in its command line.
    """
    answers: dict[str, Callable[[str], Any]] = {
        "fields": page.fields,
        "plan": page.answer,
        # Drawing takes most of a second, and reloading the page need not repeat it.
        "plots": lru_cache(page.pictures),
    }

    async def file(request: web.Request) -> web.Response:
        name = request.match_info.get("file") or "index.html"
        resource = FILES.get(name)
        if resource is None:
            raise web.HTTPNotFound
        return web.Response(text=resource.read_text("utf-8"), content_type=MEDIA[Path(name).suffix], charset="utf-8")

    page_routes = web.Application(middlewares=[_protect])
    page_routes.router.add_get(f"/{token}/", file)
    for name, compute in answers.items():
        page_routes.router.add_get(f"/{token}/{name}", _json_handler(compute))
    page_routes.router.add_get(f"/{token}/page/{{file}}", file)
    return page_routes


def _json_handler(compute: Callable[[str], Any]) -> _Handler:
    """Return a handler that answers with what *compute* makes of the request's query, or its error with status 422.

    It computes in a thread, one answer at a time: the settings of matplotlib are global.
    """
    turn = asyncio.Lock()

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            async with turn:
                return web.json_response(await asyncio.to_thread(compute, request.query_string))
        except BenchMisused as error:
            return web.json_response({"error": str(error)}, status=422)

    return handle


@web.middleware
async def _protect(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Answer a request for 127.0.0.1 or localhost, with headers that forbid other origins; refuse other hosts with 421.

    A page of another site can reach this server by DNS rebinding, but its requests have the site's host name.
    """
    host = request.host.rpartition(":")[0] or request.host
    if host not in (HOST, "localhost"):
        raise web.HTTPMisdirectedRequest(text="the Host header names neither 127.0.0.1 nor localhost")

    response = await handler(request)
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Cache-Control"] = "no-store"
    return response


def open_page(page: PlannerPage, query: str, announce: Callable[[str], None], *, browser: bool) -> None:
    """Serve the page on a free port of loopback until SIGINT or SIGTERM and, with *browser*, open it in the user's.

    *announce* is called with the page's URL, which contains *query*, the first inputs, and a secret token. Raises
    BenchMisused for an invalid *query*.
    """
    page.answer(query)  # an invalid input is refused before a browser opens

    token = secrets.token_urlsafe(16)
    with socket.create_server((HOST, 0)) as listener:
        _, port = listener.getsockname()
        url = f"http://{HOST}:{port}/{token}/?{query}".rstrip("?")
        announce(url)
        if browser:
            webbrowser.open(url)
        web.run_app(application(page, token), sock=listener, access_log=None, print=None)
