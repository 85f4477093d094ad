"""The unmodified JavaScript SDK against the emulation, for all that both know."""

import secrets
from pathlib import Path

import orjson
import pytest

from tests.support.cosmos_account import Account
from tests.support.npm import installed
from tests.support.processes import run_process

SDK = "@azure/cosmos@4.9.0"
PROGRAM = """
import { CosmosClient } from "@azure/cosmos";
import { isDeepStrictEqual } from "node:util";

const [endpoint, key, name] = process.argv.slice(2);
const client = new CosmosClient({ endpoint, key });
const impatient = new CosmosClient({ endpoint, key, connectionPolicy: { retryOptions: { maxRetryAttemptCount: 0 } } });
const failed = [];

async function expect(what, run, expected) {
  let found;
  try { found = await run(); } catch (error) { found = `${error.code}: ${error.message}`; }
  if (expected instanceof RegExp ? !expected.test(found) : !isDeepStrictEqual(found, expected)) {
    failed.push({ what, found, expected: String(expected) });
  }
}
const ids = async (iterator) => (await iterator.fetchAll()).resources.map((each) => each.id);
const given = (value) => ({ query: "SELECT * FROM c WHERE c.n = @n", parameters: [{ name: "@n", value }] });

// Databases, containers and offers
for (const status of [201, 200]) {
  await expect("database", async () => (await client.databases.createIfNotExists({ id: name })).statusCode, status);
}
const database = client.database(name);
for (const status of [201, 200]) {
  await expect("container", async () => {
    return (await database.containers.createIfNotExists({ id: "lists", partitionKey: "/id" })).statusCode;
  }, status);
}
for (const throughput of [{ throughput: 1000 }, { maxThroughput: 4000 }]) {
  const id = Object.keys(throughput)[0];
  const definition = { id, partitionKey: { paths: ["/id"] }, ...throughput };
  await expect(id, async () => (await database.containers.create(definition)).statusCode, 201);
}
await expect("databases", async () => (await ids(client.databases.readAll())).includes(name), true);
await expect("containers", () => ids(database.containers.readAll()), ["lists", "throughput", "maxThroughput"]);
const one = { query: "SELECT * FROM r WHERE r.id = @id", parameters: [{ name: "@id", value: "lists" }] };
await expect("one container", () => ids(database.containers.query(one)), ["lists"]);
await expect("offer", async () => {
  return (await database.container("throughput").readOffer()).resource.content.offerThroughput;
}, 1000);
await expect("new offer", async () => {
  const { resource } = await database.container("throughput").readOffer();
  resource.content.offerThroughput = 1200;
  return (await client.offer(resource.id).replace(resource)).resource.content.offerThroughput;
}, 1200);
await expect("autoscale", async () => {
  return (await database.container("maxThroughput").readOffer()).resource.content.offerAutopilotSettings.maxThroughput;
}, 4000);
await expect("no offer", async () => (await database.readOffer()).resource, undefined);
const container = database.container("lists");
await expect("ranges", async () => (await container.readPartitionKeyRanges().fetchAll()).resources.length, 1);

// Items
await expect("create", async () => (await container.items.create({ id: "a", n: 1 })).requestCharge, 5.4);
await expect("create again", () => container.items.create({ id: "a", n: 1 }), /^409: /);
await expect("upsert", async () => (await container.items.upsert({ id: "b", n: 2, s: "it's" })).statusCode, 201);
const read = await container.item("a", "a").read();
await expect("read", async () => [read.resource.n, read.requestCharge], [1, 1]);
const accessCondition = { type: "IfNoneMatch", condition: read.etag };
await expect("unchanged", async () => {
  const found = await container.item("a", "a").read({ accessCondition });
  return [found.statusCode, found.resource ?? null, found.etag === read.etag];
}, [304, null, true]);
await expect("absent", async () => (await container.item("x", "x").read()).statusCode, 404);
const unchanged = { accessCondition: { type: "IfMatch", condition: read.etag } };
await expect("replace", async () => {
  return (await container.item("a", "a").replace({ id: "a", n: 3 }, unchanged)).statusCode;
}, 200);
await expect("replace again", () => container.item("a", "a").replace({ id: "a", n: 4 }, unchanged), /^412: /);
await expect("changed", async () => (await container.item("a", "a").read({ accessCondition })).resource.n, 3);

// Queries
await expect("query", () => ids(container.items.query(given(2))), ["b"]);
await expect("query of a key", () => ids(container.items.query(given(2), { partitionKey: "a" })), []);
const parameters = [["@b", "b"], ["@s", "it's"], ["@1", 1], ["@2", 2.0]].map(([name, value]) => ({ name, value }));
for (const condition of ["c.n = @2", "c.id = @b", 'c.id = "b" AND c.n IN (@1, @2)', "c.s = @s"]) {
  const query = { query: `SELECT * FROM c WHERE ${condition}`, parameters };
  await expect(condition, () => ids(container.items.query(query)), ["b"]);
}
await expect("literal", () => ids(container.items.query("SELECT * FROM c WHERE c.n = 2")), /IN parameters/);
await expect("pages", () => ids(container.items.query("SELECT * FROM c", { maxItemCount: 1 })), ["a", "b"]);
await expect("all", () => ids(container.items.readAll({ maxItemCount: 1 })), ["a", "b"]);
await expect("order", () => ids(container.items.query("SELECT * FROM c ORDER BY c.n")), /supports only SELECT \\*/);

// What is not emulated
const upsert = { operationType: "Upsert", resourceBody: { id: "a", n: 9 } };
await expect("batch", () => container.items.batch([upsert], "a"), /batches and bulk requests are not emulated/);
await expect("bulk", () => container.items.bulk([{ ...upsert, partitionKey: "a" }]), /bulk requests are not emulated/);

// 429: the SDK waits as long as it is told. A large item costs more than a second's request units, on any machine.
const large = Array.from({ length: 20 }, (_, number) => ({ id: `l${number}`, n: 99, text: "x".repeat(100_000) }));
const many = Array.from({ length: 120 }, (_, number) => ({ id: `m${number}`, n: 100 }));
await expect("refused", async () => {
  const { items } = impatient.database(name).container("lists");
  const all = await Promise.allSettled(large.map((item) => items.upsert(item)));
  const codes = new Set(all.map((each) => each.reason?.code ?? each.value.statusCode));
  return [...codes].sort();
}, [201, 429]);
await expect("repeated", async () => {
  const all = await Promise.all(many.map((item) => container.items.upsert(item)));
  return all.every((each) => each.statusCode < 300);
}, true);
await expect("many", async () => (await ids(container.items.query(given(100)))).length, many.length);

await expect("delete", async () => (await container.item("a", "a").delete()).statusCode, 204);
await expect("delete again", () => container.item("a", "a").delete(), /^404: /);
await expect("delete container", async () => (await container.delete()).statusCode, 204);
await expect("delete database", async () => (await database.delete()).statusCode, 204);
console.log(JSON.stringify(failed));
"""


def test_javascript_sdk_finds_what_it_expects(
    cosmos_http: Account, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    packages = installed(pytestconfig, SDK)
    (tmp_path / "node_modules").symlink_to(packages / "node_modules")
    (tmp_path / "sdk.mjs").write_text(PROGRAM)
    server = cosmos_http.emulator
    command = ["node", "sdk.mjs", server.endpoint, server.key, f"js-{secrets.token_hex(4)}"]
    done = run_process(*command, cwd=tmp_path, timeout=300)
    assert orjson.loads(done.stdout.splitlines()[-1]) == []
