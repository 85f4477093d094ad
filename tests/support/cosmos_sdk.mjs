// The unmodified @azure/cosmos SDK against the emulation. Usage: node cosmos_sdk.mjs ENDPOINT KEY
// It runs from the folder in which the SDK is installed, and prints "done" when all was as it should be.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const { CosmosClient } = createRequire(`${process.cwd()}/`)("@azure/cosmos");
const [endpoint, key] = process.argv.slice(2);
const client = new CosmosClient({ endpoint, key });

const refused = async (promise, code) => {
  await assert.rejects(promise, (error) => error.code === code);
};

const { database } = await client.databases.createIfNotExists({ id: "js" });
const { container } = await database.containers.createIfNotExists({
  id: "lists",
  partitionKey: { paths: ["/id"], version: 2 },
  throughput: 11000,
});
assert.equal((await container.getPartitionKeyDefinition()).resource.paths[0], "/id");

const made = await container.items.create({ id: "u0", n: 0, name: "ü€" });
assert.equal(made.requestCharge, 5.6);
assert.equal((await container.item("u0", "u0").read()).resource.name, "ü€");
await refused(container.items.create({ id: "u0" }), 409);
const again = await container.items.upsert({ id: "u0", n: 1 });
const accessCondition = { type: "IfMatch", condition: made.resource._etag };
await refused(container.item("u0", "u0").replace({ id: "u0" }, { accessCondition }), 412);
accessCondition.condition = again.resource._etag;
assert.equal((await container.item("u0", "u0").replace({ id: "u0", n: 2 }, { accessCondition })).resource.n, 2);
assert.equal((await container.item("u0", "u0").delete()).statusCode, 204);
assert.equal((await container.item("u0", "u0").read()).statusCode, 404);

for (let n = 0; n < 20; n++) await container.items.create({ id: `u${n}`, n, odd: n % 2 === 1 });
const all = async (query, options) => (await container.items.query(query, options).fetchAll()).resources;
const named = { query: "SELECT * FROM c WHERE c.id = @id", parameters: [{ name: "@id", value: "u3" }] };
assert.deepEqual((await all(named)).map((one) => one.n), [3]);
assert.equal((await all("SELECT * FROM c", { maxItemCount: 3 })).length, 20);
assert.equal((await container.items.readAll().fetchAll()).resources.length, 20);
await refused(all("SELECT udf.f(c) FROM c"), 400);

const { resource: offer } = await container.readOffer();
assert.equal(offer.content.offerThroughput, 11000);
offer.content.offerThroughput = 12000;
assert.equal((await client.offer(offer.id).replace(offer)).resource.content.offerThroughput, 12000);
await refused(new CosmosClient({ endpoint, key: "d3Jvbmc=" }).databases.readAll().fetchAll(), 401);

// More in flight than a container can serve: the SDK's own retries hide every 429.
const { container: slow } = await database.containers.create({ id: "slow", partitionKey: { paths: ["/id"], version: 2 } });
await slow.items.create({ id: "a" });
const lane = async () => {
  for (let n = 0; n < 40; n++) assert.equal((await slow.item("a", "a").read()).statusCode, 200);
};
await Promise.all(Array.from({ length: 24 }, lane));
await container.delete();
await database.delete();
client.dispose();
console.log("done");
process.exit(0);
