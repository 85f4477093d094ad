"""What a partition banks while it is idle: spent empty, left idle for whole seconds, and asked for more than it has."""

import time
from math import floor

from bench.loadgen.keys import InTurn, Keys
from bench.planner.demand import predict_ru
from bench.ru.effects import Effect
from bench.ru.ground import Ground
from bench.ru.items import Items
from bench.ru.requests import Drawn, Maker
from bench.ru.trials import RU, Offered, Trials
from stores.cosmos.charges import Charges
from stores.cosmos.throughput import Throughput

PROVISIONED = Throughput(400)
IDLE_S = 5
SPENT_S, ASKED_S = 2, 2
ASKED_RATE = 3_500.0
"""Above what a partition may spend in a burst, so that its bank is empty after every second."""

LEAD_S = 0.5
ITEMS = 100


def burst(ground: Ground, charges: Charges, trials: Trials) -> Effect:
    """Measure what is answered after an idle time, on an emulator that banks."""
    items = Items(1, ITEMS, PROVISIONED.partitions_at_birth)
    container = ground.make(PROVISIONED)
    ground.fill(container, items)
    offered = Offered(
        Drawn(Maker(ground.address).reads(container, items, "Eventual"), Keys(items.ids, InTurn())), ASKED_RATE
    )
    trials.once("burst, spending what is banked", ground, ASKED_RATE, offered, SPENT_S)
    idle_from = floor(time.time())
    time.sleep(max(0.0, idle_from + IDLE_S - LEAD_S - time.time()))
    found = trials.once("burst, after idle time", ground, ASKED_RATE, offered, ASKED_S)
    idle_s = floor(time.time()) - ASKED_S - idle_from
    ru = PROVISIONED.ru * (1 + idle_s / ASKED_S)
    return Effect(
        name=f"burst: {ASKED_S} s after {idle_s} s idle, of {PROVISIONED.ru} RU/s",
        inputs=f"{PROVISIONED.ru} RU/s and {PROVISIONED.ru * idle_s:,} RU banked; {ASKED_RATE:,.0f} requests/s asked",
        ru=ru,
        rate=found.ok_rate,
        foretold_ru=predict_ru(charges, found.ok_rate, items.size),
        limit="; ".join(found.doubts) or RU,
        stopped=found.stopped,
    )
