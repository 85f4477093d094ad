"""The work of `hotplate demo`: train, publish and serve in a temporary folder."""

import shutil
import sys
from functools import partial
from pathlib import Path
from shlex import quote as quoted
from urllib.parse import quote

from hotplate.cli import publish_work
from hotplate.cli.options import PublishFlags
from hotplate.cli.terminal import out, progress_bars, run_interruptibly
from hotplate.cli.train_work import print_training
from hotplate.offline.input.sample import sample
from hotplate.offline.train.als import ALSParams
from hotplate.offline.training import TrainSettings, train
from hotplate.serve.connections.listeners import reserve
from hotplate.serve.log_lines import configure_logging
from hotplate.serve.processes.supervisor import Addresses, serve
from hotplate.serve.settings import ServiceSettings
from hotplate.stores.folders import temporary_folder

# With the default of 256 factors, training takes 2 s longer, for an nDCG of .397 instead of .389.
SAMPLE_PARAMS = ALSParams(factors=64)


def demonstrate(data: Path | None, *, host: str, port: int) -> None:
    """Train on *data*, or on sample data, publish the lists to a temporary store, and serve them until Ctrl-C."""
    with temporary_folder("demo") as folder:
        reserve(host, port).close()  # fail before the training if the port is in use
        params = ALSParams()
        if data is None:
            data = folder / "sample.parquet"
            sample().write_parquet(data)
            params = SAMPLE_PARAMS

        training = TrainSettings(path=data, params=params)
        model_folder = folder / "model"
        with progress_bars() as on_progress:
            trained = run_interruptibly(lambda: train(training, model_folder, on_progress))
        print_training(trained)

        store_url = f"file://{folder / 'store'}"
        publish_work.publish_models(PublishFlags(model=model_folder, store=store_url))

        matrix = trained.model.matrix
        on_ready = partial(_print_examples, store=store_url, user=matrix.user_ids[0], item=matrix.item_ids[0])
        configure_logging()
        settings = ServiceSettings(
            stores=(store_url,),
            host=host,
            port=port,
            admin_port=0,
            health_port=0,
            admin_store=store_url,
            anonymous=True,
        )
        serve(settings, on_ready)


def _print_examples(addresses: Addresses, *, store: str, user: str, item: str) -> None:
    paths = (f"recommendations/{quote(user, safe='')}?n=5", f"similar/{quote(item, safe='')}?n=5", "popular?n=5")
    out.print(f"\nhotplate is ready on {addresses.service}. Try, in another terminal:\n")
    for path in paths:
        out.print(f"  curl '{addresses.service}/v1/{path}'")
    command = "hotplate" if shutil.which("hotplate") else sys.argv[0]
    out.print(f"  {command} lookup {quoted(user)} --store {quoted(store)}")
    out.print(f"\nThe console is on {addresses.admin}/console, the metrics on {addresses.admin}/metrics.")
    out.print("Ctrl-C stops it and removes everything.")
