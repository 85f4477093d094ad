"""One request to one container: whose it is, when it came, and what it asks of consistency."""

from dataclasses import dataclass

from bench.cosmos_emulator.account import CONSISTENCIES, STRONG, Account, Container, expiry
from bench.cosmos_emulator.documents import Document
from bench.cosmos_emulator.errors import CONTAINER_RECREATED, SESSION_NOT_AVAILABLE, Refused, bad
from bench.cosmos_emulator.messages import Request
from bench.cosmos_emulator.partitions import Partition


@dataclass(frozen=True, slots=True)
class Turn:
    """What every operation on items needs; it lives as long as its request."""

    account: Account
    container: Container
    request: Request
    now: float
    strong: bool
    """Whether reads are charged as for strong or bounded staleness."""

    @property
    def region(self) -> int:
        """Return the region that was asked."""
        return self.request.region

    def live(self, name: str, key: bytes) -> Document | None:
        """Find an item; one that has expired is gone at once, whenever it is swept."""
        container = self.container
        document = container.documents.get(name, key)
        if document is not None and container.default_ttl is not None and expiry(container, document) <= self.now:
            container.documents.remove(document)
            return None
        return document

    def check_session(self, partition: Partition) -> None:
        """Refuse a read whose session has seen more than this partition has; here, only a token of another life has."""
        token = self.request.headers.get(b"x-ms-session-token")
        if token is None or self.strong:
            return
        for part in token.decode("latin-1").split(","):
            range_id, _, progress = part.partition(":")
            seen = progress.split("#")[1:2]
            if range_id == partition.id and seen and seen[0].isdecimal() and int(seen[0][:18]) > partition.lsn:
                raise Refused(
                    404, "The read session is not available for the input session token.", SESSION_NOT_AVAILABLE
                )

    def headers(self, partition: Partition, etag: str | None = None) -> dict[str, str]:
        """Return the headers that answers of one partition carry."""
        made = {
            "x-ms-session-token": f"{partition.id}:-1#{partition.lsn}",
            "lsn": str(partition.lsn),
            "x-ms-documentdb-partitionkeyrangeid": partition.id,
            "x-ms-alt-content-path": self.container.named_link,
            "x-ms-content-path": self.container.rid,
        }
        if etag is not None:
            made["etag"] = etag
        return made


def turn_for(account: Account, container: Container, request: Request, now: float) -> Turn:
    """Make the turn of a request; refuses a container that was made anew, and a consistency above the account's."""
    rid = request.headers.get(b"x-ms-cosmos-intended-collection-rid")
    if rid is not None and rid.decode("latin-1") != container.rid:
        raise bad("the container was deleted and made anew since its _rid was read", CONTAINER_RECREATED)
    asked = request.headers.get(b"x-ms-consistency-level")
    level = account.consistency
    if asked is not None:
        level = asked.decode("latin-1")
        if level not in CONSISTENCIES:
            raise bad(f"no such consistency level; there are {', '.join(CONSISTENCIES)}")
        if CONSISTENCIES.index(level) < CONSISTENCIES.index(account.consistency):
            raise bad(f"consistency {level} is stronger than the account's, {account.consistency}")
    return Turn(account, container, request, now, level in STRONG)
