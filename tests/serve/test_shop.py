"""The example shop of docs/integration.md as it stands there, against a real service, and in each state that fails."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote, urlencode
from urllib.request import urlopen

import pytest
from aiohttp import web

from hotplate.bench.process import free_port
from hotplate.remembered_lists import REFRESH_AGAIN_S
from tests.support import patience
from tests.support.browser import opened
from tests.support.examples import examples
from tests.support.kubernetes import tool
from tests.support.paths import ROOT
from tests.support.redis_server import running as redis_running
from tests.support.service import (
    UNTIL_S,
    a_list,
    publish_lists,
    published,
    running,
    running_app,
    serving,
    until,
)

GUIDE = "docs/integration.md"
((FASTAPI,), (DJANGO,)) = (examples(GUIDE, framework) for framework in ("FastAPI", "Django"))
SHARED, NODE = examples(GUIDE, "JavaScript", "js")
(PAGE,) = examples(GUIDE, "JavaScript", "html")
# Ids as shops have them.
USER = "müsli 2/XL"
PRODUCT = "sku 20/50%"
LISTS = {f"user:{USER}": a_list("1", "2"), f"item:{PRODUCT}": a_list("A-00003", "9"), "item:A-00003": a_list("9", "3")}
POPULAR = ["p1", "p2", "p3"]
FOLDED = ["9", "3"]
LINES = [{"id": PRODUCT, "quantity": 2}, {"id": "A-00003", "quantity": 1}]

# Answers lines of path, query and basket by the ids that the application shows.
ANSWERING = """
import json, sys

for line in sys.stdin:
    print(json.dumps([item["id"] for item in answered(*json.loads(line))]), flush=True)
"""
ON_DJANGO = """
import json
from types import SimpleNamespace

import django
from django.conf import settings
from django.test import Client

def signed_in(get_response):
    def middleware(request):
        request.user = SimpleNamespace(pk=request.GET.get("user"))
        request.session = json.loads(request.GET["session"])
        return get_response(request)
    return middleware

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["testserver"], MIDDLEWARE=[f"{__name__}.signed_in"])
django.setup()
client = Client()

def answered(path, query, lines):
    session = {} if lines is None else {"basket": lines}
    response = client.get(path, query | {"session": json.dumps(session)})
    assert response.status_code == 200
    return response.json()["items"]
"""
ON_FASTAPI = """
import asyncio, atexit, json
from urllib.parse import unquote, urlencode

async def call(path, query, lines):
    sent = []
    async def receive():
        return {"type": "http.request", "body": json.dumps(lines).encode()}
    async def send(message):
        sent.append(message)
    scope = {"type": "http", "method": "GET" if lines is None else "POST", "path": unquote(path)}
    scope |= {"query_string": urlencode(query).encode(), "headers": [(b"content-type", b"application/json")]}
    await app(scope, receive, send)
    assert sent[0]["status"] == 200, sent
    return json.loads(b"".join(message.get("body", b"") for message in sent))

runner = asyncio.Runner()
started = app.router.lifespan_context(app)
runner.run(started.__aenter__())
atexit.register(lambda: runner.run(started.__aexit__(None, None, None)))

def answered(path, query, lines):
    return runner.run(call(path, query, lines))
"""
Ask = Callable[..., list[str]]


def patient(program: str, port: int) -> str:
    """Return a program for the service at *port*, on a busy machine."""
    assert "127.0.0.1:8080" in program
    program = program.replace("127.0.0.1:8080", f"127.0.0.1:{port}").replace("timeout(250)", "timeout(60000)")
    return program.replace('key="KEY"', 'key="KEY", timeout_s=60')


@contextmanager
def python(example: str, harness: str, port: int) -> Iterator[Ask]:
    """Run an application of Python; yields a function that returns the ids of a page."""
    command = [sys.executable, "-c", "\n".join([patient(example, port), harness, ANSWERING])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        stdin = process.stdin
        answers = process.stdout
        assert stdin is not None
        assert answers is not None

        def ask(path: str, query: dict[str, str] | None = None, lines: object = None) -> list[str]:
            print(json.dumps([path, query or {}, lines]), file=stdin, flush=True)
            printed: list[str] = json.loads(answers.readline())
            return printed

        yield ask
    assert process.returncode == 0


@contextmanager
def node(folder: Path, port: int) -> Iterator[Ask]:
    """Run the server of Node; yields as `python`."""
    program = tool("node")
    tell_port = 'listen(0, "127.0.0.1", function () { console.log(this.address().port); })'
    assert "listen(3000)" in NODE
    (folder / "server.mjs").write_text(NODE.replace("listen(3000)", tell_port))
    (folder / "shop.mjs").write_text(patient(SHARED, port))
    with subprocess.Popen([program, str(folder / "server.mjs")], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"

        def ask(path: str, query: dict[str, str] | None = None, lines: object = None) -> list[str]:
            body = None if lines is None else json.dumps(lines).encode()
            with urlopen(f"{url}{path}?{urlencode(query or {})}", body, timeout=UNTIL_S) as response:
                return [item["id"] for item in json.load(response)]

        try:
            yield ask
        finally:
            process.terminate()


def application(name: str, folder: Path, port: int) -> AbstractContextManager[Ask]:
    if name == "node":
        return node(folder, port)
    return python(*{"fastapi": (FASTAPI, ON_FASTAPI), "django": (DJANGO, ON_DJANGO)}[name], port)


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("name", ["fastapi", "django", "node"])
def test_each_page_shows_lists_or_fewer_but_never_fails(tmp_path: Path, name: str) -> None:
    port = free_port()
    (tmp_path / "redis").mkdir()
    with redis_running(tmp_path / "redis") as redis, application(name, tmp_path, port) as ask:

        def pages() -> list[list[str]]:
            """Return the lists of a visitor, a user, an unknown user, a product and a basket."""
            homes = [ask("/"), ask("/", {"user": USER}), ask("/", {"user": "A-00003"})]
            return [*homes, ask(f"/products/{quote(PRODUCT, safe='')}"), ask("/basket", lines=LINES)]

        assert pages() == [[]] * 5, "the service is down"
        with serving(tmp_path, "--store", redis.url(), "--port", str(port), "--budget", "60", before=patience.INSTALL):
            assert pages() == [[]] * 5, "no release is live"
            published(redis.url(), LISTS)
            until(lambda: ask("/") == POPULAR)
            time.sleep(REFRESH_AGAIN_S)  # then the client uses its memory
            assert pages() == [POPULAR, ["1", "2"], POPULAR, ["A-00003", "9"], FOLDED]
            assert ask("/basket", lines=[]) == POPULAR
            assert ask("/basket", lines=[{"id": PRODUCT, "quantity": 0}]) == [], "the service refuses it"
            redis.kill()
            assert pages() == [POPULAR] * 5, "the store is down"
        assert pages() == [[] if name == "node" else POPULAR] * 5, "the service is down"


async def test_the_server_of_node_has_made_a_request_before_it_listens(tmp_path: Path) -> None:
    requested = list[str]()

    async def answer(request: web.Request) -> web.Response:
        requested.append(request.path_qs)
        return web.json_response({"items": []})

    app = web.Application()
    app.router.add_get("/{name:.*}", answer)
    async with running_app(app) as service:
        port = int(service.rpartition(":")[2])
        with ExitStack() as stack:
            await asyncio.to_thread(stack.enter_context, node(tmp_path, port))  # waits until it listens
            assert requested == ["/v1/popular?n=10"]


async def test_the_page_shows_each_list_in_a_browser_and_none_without_a_service(browser: str, tmp_path: Path) -> None:
    files = {"": (PAGE, "text/html"), "shop.mjs": ("", "text/javascript"), "favicon.ico": ("", "image/x-icon")}

    async def answer(request: web.Request) -> web.Response:
        text, media = files[request.match_info["name"]]
        return web.Response(text=text, content_type=media)

    app = web.Application()
    app.router.add_get("/{name:.*}", answer)
    await publish_lists(tmp_path / "store", {"item:42": a_list("7"), "item:43": a_list("8")})
    async with running_app(app) as site:
        with running(tmp_path / "store", "--cors-origin", site) as service:
            files["shop.mjs"] = patient(SHARED, service.port), "text/javascript"
            async with opened(browser, site) as page:
                await page.until("document.querySelectorAll('li').length === 6")
                titles = (
                    "[...document.querySelectorAll('ul')].map((list) => [...list.children].map((e) => e.textContent))"
                )
                named = [["p1", "p2", "p3"], ["7"], ["8", "7"]]
                assert await page.evaluate(titles) == [[f"Title {item}" for item in ids] for ids in named]
                assert page.complaints == []
        async with opened(browser, site) as page:
            await page.until("document.querySelectorAll('ul').length === 0")
            assert {text for text in page.complaints if "ERR_CONNECTION_REFUSED" not in text} == set()
