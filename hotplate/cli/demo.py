"""`hotplate demo`: the main job from end to end, on the embedded store."""

import shutil
import sys
from pathlib import Path
from shlex import quote as quoted
from typing import Annotated
from urllib.parse import quote

from hotplate.cli.publish import PublishFlags, publish
from hotplate.cli.terminal import interruptible, out, progress_bars
from hotplate.cli.train import print_report
from hotplate.stores.options import Flag


def demo(
    data: Annotated[Path | None, Flag("Learn from this file or folder, and not from made-up data.")] = None,
    host: Annotated[str, Flag("The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, Flag("The port; 0 takes any free one.", at_least=0, at_most=65535)] = 8080,
) -> None:
    """Train on sample data, publish, serve, and print what to try; stop it with Ctrl-C.

    Everything lies in a temporary folder, which is removed when the demo stops.

    Example: hotplate demo --data clicks.csv
    """
    from hotplate.offline.input.sample import sample
    from hotplate.offline.training import TrainSettings, train
    from hotplate.serve.connections.listeners import reserve
    from hotplate.serve.processes.supervisor import serve as run
    from hotplate.serve.settings import ServiceSettings, configure_logging
    from hotplate.stores.folders import temporary_folder

    with temporary_folder("demo") as folder:
        reserve(host, port).close()  # a port in use is better reported before the training than after
        if data is None:
            data = folder / "sample.parquet"
            sample().write_parquet(data)
        with progress_bars() as on_progress:
            report = interruptible(lambda: train(TrainSettings(path=data), folder / "model", on_progress))
        print_report(report)
        url = f"file://{folder / 'store'}"
        publish(folder / "model", PublishFlags(store=url))
        user, item = report.model.matrix.user_ids[0], report.model.matrix.item_ids[0]
        configure_logging()
        settings = ServiceSettings((url,), host, port, admin_port=0, health_port=0, admin_store=url, anonymous=True)
        run(settings, lambda addresses: _print_examples(addresses.service, addresses.admin, url, user, item))


def _print_examples(address: str, admin: str, store: str, user: str, item: str) -> None:
    paths = (f"recommendations/{quote(user, safe='')}?n=5", f"similar/{quote(item, safe='')}?n=5", "popular?n=5")
    out.print(f"\nhotplate is ready on {address}. Try, in another terminal:\n")
    for path in paths:
        out.print(f"  curl '{address}/v1/{path}'")
    command = "hotplate" if shutil.which("hotplate") else sys.argv[0]
    out.print(f"  {command} lookup {quoted(user)} --store {quoted(store)}")
    out.print(f"\nThe console is on {admin}/console, the metrics on {admin}/metrics.")
    out.print("Ctrl-C stops it and removes everything.")
