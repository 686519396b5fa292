// emmett on PostgreSQL: N concurrent appends of one event, and its own command handler.
// `node emmett.mjs URL FOLDER`: FOLDER holds node_modules. Speaks wire.py's lines of JSON.
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const [url, folder] = process.argv.slice(2);
const require = createRequire(`${folder}/package.json`);
const pg = require("pg");
const { CommandHandler } = require("@event-driven-io/emmett");
const { getPostgreSQLEventStore } = require("@event-driven-io/emmett-postgresql");

const WARM_UP = 1;
const EVENTS_OF_STREAM = 10;
const STREAMS_EACH = 10;
const EVENTS_AT_FIRST = 5;
const EVENTS_AT_LAST = 15;

const held = () => ({
  type: "PlacesHeld",
  data: { holdId: randomUUID(), quantity: 1, note: "n".repeat(180) }, // about 250 bytes of JSON
});

/** Answers as wire.py's `closed`: what ends after the time is up does not count. */
async function closed(ops, seconds) {
  await Promise.all(ops.map(async (op) => { for (let nth = 0; nth < WARM_UP; nth++) await op(); }));
  let commands = 0, late = 0;
  const cpu = process.cpuUsage();
  const ends = performance.now() + seconds * 1e3;
  await Promise.all(ops.map(async (op) => {
    while (performance.now() < ends) {
      await op();
      if (performance.now() < ends) commands++; else late++;
    }
  }));
  const { user, system } = process.cpuUsage(cpu);
  const every = Math.max(commands + late, 1);
  return { commands, per_s: commands / seconds, client_cpu_us: (user + system) / every, server_cpu_us: null };
}

function writer(store) {
  let stream = randomUUID(), version = 0n;
  return async () => {
    if (version === BigInt(EVENTS_OF_STREAM)) { stream = randomUUID(); version = 0n; }
    await store.appendToStream(`pool-${stream}`, [held()], { expectedStreamVersion: version });
    version++;
  };
}

const evolve = (state, event) => ({ held: state.held + event.data.quantity });
const handle = CommandHandler({ evolve, initialState: () => ({ held: 0 }) });

async function decider(store) {
  const opened = async () => {
    const stream = `pool-${randomUUID()}`;
    await store.appendToStream(stream, Array.from({ length: EVENTS_AT_FIRST }, held), { expectedStreamVersion: 0n });
    return stream;
  };
  const span = EVENTS_AT_LAST - EVENTS_AT_FIRST;
  const streams = [], left = [];
  for (let nth = 0; nth < STREAMS_EACH; nth++) { streams.push(await opened()); left.push(span - (nth % span)); }
  let at = 0;
  return async () => {
    at = (at + 1) % STREAMS_EACH;
    if (!left[at]) { streams[at] = await opened(); left[at] = span; }
    left[at]--;
    await handle(store, streams[at], () => held());
  };
}

async function withStore(concurrent, work) {
  const pool = new pg.Pool({ connectionString: url, max: concurrent });
  const store = getPostgreSQLEventStore(url, { connectionOptions: { pool } });
  try {
    return await work(store);
  } finally {
    await store.close();
    await pool.end().catch(() => {}); // the store may have ended it already
  }
}

const tasks = {
  append: ({ concurrent, seconds }) =>
    withStore(concurrent, (store) => closed(Array.from({ length: concurrent }, () => writer(store)), seconds)),
  decide: ({ concurrent, seconds }) =>
    withStore(concurrent, async (store) =>
      closed(await Promise.all(Array.from({ length: concurrent }, () => decider(store))), seconds)),
};

const say = (answer) => process.stdout.write(`${JSON.stringify(answer)}\n`);
console.log = console.info = console.error;
await withStore(1, (store) => store.schema.migrate());
const described = JSON.parse(readFileSync(`${folder}/node_modules/@event-driven-io/emmett-postgresql/package.json`));
say({ ready: { emmett: described.version, node: process.version } });
for await (const line of createInterface({ input: process.stdin })) {
  const { do: task, ...request } = JSON.parse(line);
  try {
    say(await tasks[task](request));
  } catch (fault) {
    say({ fault: `${fault?.name}: ${fault?.message}` });
  }
}
