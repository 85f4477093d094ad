"""What the doctor finds out about an account: of the emulator, by key and by identity."""

import secrets
from pathlib import Path

from hotplate.stores.cosmos.charges import OURS
from hotplate.stores.store import Level
from tests.support.cosmos_account import Account, emulated_account
from tests.support.cosmos_simulation import SimulatedAccount, simulated
from tests.support.service import a_list, publish_to
from tests.support.stores import look, publish


async def test_a_sound_account_has_no_warning_and_is_not_changed(account: Account) -> None:
    url = account.url(secrets.token_hex(4))
    empty = await look(url)
    assert (empty["may publish"].level, "is empty" in empty["may publish"].sentence) == (Level.OK, True)
    await publish_to(url, {"user:1": a_list("a")})
    findings = await look(url)
    again = await look(url)
    timed = ("reading",)  # by this machine's load
    assert [
        finding for finding in findings.values() if finding.level != Level.OK and finding.subject not in timed
    ] == []
    assert findings["may publish"].sentence == "yes"
    assert findings["catalogue"] == again["catalogue"]
    assert "read in" in findings["server"].sentence
    assert "400 RU/s" in findings["throughput"].sentence
    assert {"server", "identity", "read", "may publish", "etag", "charge", "throughput"} <= findings.keys()


async def test_unexpected_charge_is_a_warning(tmp_path: Path) -> None:
    table = tmp_path / "charges.toml"
    table.write_text(OURS.read_text().replace("[1, 1.00], [2, 1.04]", "[1, 2.00], [2, 2.04]"))
    with emulated_account(None, "--charges", str(table)) as dearer:
        url = dearer.url(secrets.token_hex(4))
        await publish_to(url, {"user:1": a_list("a")})
        finding = (await look(url))["charge"]
    assert (finding.level, "hotplate bench charges" in finding.sentence) == (Level.WARNING, True)


@simulated
async def test_unencrypted_account_on_another_machine_is_a_warning(account: SimulatedAccount) -> None:
    [transport] = [finding for finding in await account.store().examine() if finding.subject == "transport"]
    assert (transport.level, "use https" in transport.sentence) == (Level.WARNING, True)


@simulated
async def test_account_that_ignores_versions_is_found_without_a_change(account: SimulatedAccount) -> None:
    store = account.store()
    await publish(store)
    before = await store.catalogue()
    account.ignores_versions = True
    [etag] = [finding for finding in await store.examine() if finding.subject == "etag"]
    assert (etag.level, "do not publish here" in etag.sentence) == (Level.ERROR, True)
    assert await store.catalogue() == before
