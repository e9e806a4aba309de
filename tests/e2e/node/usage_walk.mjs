// Reads all of OpenAI's usage and costs with the official SDK, page by page, and holds every result against the types
// that the SDK itself declares. Prints the sums of each call; throws where a value is not of its type.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: process.env.BASE_URL,
  apiKey: process.env.API_KEY,
  adminAPIKey: process.env.ADMIN_KEY,
  maxRetries: 0,
});
const { usage } = client.admin.organization;
const [start_time, end_time] = [Number(process.env.START), Number(process.env.END)];

// What results are declared to be: by the word in their `object`, the types of each field.
function declared() {
  const place = new URL("./node_modules/openai/resources/admin/organization/usage.d.ts", import.meta.url);
  const text = readFileSync(place, "utf8").replaceAll(/\/\*\*[^]*?\*\//g, "");
  const shapes = {};
  for (const [, body] of text.matchAll(/interface \w+Result \{([^}]*)\}/g)) {
    const fields = [...body.matchAll(/(\w+)(\??): ([^;]+);/g)].map(([, name, optional, types]) => [
      name,
      { optional: optional !== "", types: types.split("|").map((type) => type.trim()) },
    ]);
    const shape = Object.fromEntries(fields);
    shapes[shape.object.types[0].slice(1, -1)] = shape;
  }
  return shapes;
}

function fits(value, type) {
  if (type === "null") return value === null;
  if (["number", "string", "boolean"].includes(type)) return typeof value === type;
  if (type.startsWith("'")) return value === type.slice(1, -1);
  return value !== null && value !== undefined;
}

function check(result, shapes, object) {
  assert.equal(result.object, object);
  for (const [name, { optional, types }] of Object.entries(shapes[object])) {
    if (optional && !(name in result)) continue;
    assert.ok(types.some((type) => fits(result[name], type)), `${object}.${name}: ${JSON.stringify(result[name])}`);
  }
}

async function walk(method, object, query, shapes) {
  const width = { "1d": 86400, "1h": 3600 }[query.bucket_width];
  const sums = {};
  const starts = [];
  let [page, pages] = [undefined, 0];
  do {
    const answer = await usage[method]({ start_time, end_time, ...query, ...(page ? { page } : {}) });
    assert.equal(answer.object, "page");
    assert.equal(answer.has_more, answer.next_page !== null);
    pages += 1;
    for (const bucket of answer.data) {
      assert.equal(bucket.object, "bucket");
      assert.equal(bucket.end_time - bucket.start_time, width);
      starts.push(bucket.start_time);
      for (const result of bucket.results) {
        check(result, shapes, object);
        for (const [name, value] of Object.entries(result)) {
          if (typeof value === "number") sums[name] = (sums[name] ?? 0) + value;
        }
        if (result.amount) {
          assert.equal(result.amount.currency, "usd");
          assert.ok(Math.abs(result.amount.value * 1e9 - result.amount.nano_usd) < 1);
          sums.nano_usd = (sums.nano_usd ?? 0) + result.amount.nano_usd;
        }
      }
    }
    page = answer.next_page;
  } while (page);
  const count = (end_time - start_time) / width;
  assert.deepEqual(starts, Array.from({ length: count }, (_, number) => start_time + number * width));
  return { ...sums, pages };
}

const shapes = declared();
const walked = {};
for (const [method, name] of Object.entries({
  audioSpeeches: "usage.audio_speeches",
  audioTranscriptions: "usage.audio_transcriptions",
  codeInterpreterSessions: "usage.code_interpreter_sessions",
  completions: "usage.completions",
  costs: "costs",
  decisions: "usage.decisions",
  embeddings: "usage.embeddings",
  fileSearchCalls: "usage.file_searches",
  images: "usage.images",
  moderations: "usage.moderations",
  vectorStores: "usage.vector_stores",
  webSearchCalls: "usage.web_searches",
})) {
  const object = `organization.${name}.result`;
  const daily = await walk(method, object, { bucket_width: "1d", limit: 2 }, shapes);
  const group_by = method === "costs" ? ["line_item", "project_id"] : ["project_id"];
  const grouped = await walk(method, object, { bucket_width: "1d", limit: 31, group_by }, shapes);
  walked[method] = daily;
  for (const sum of Object.keys(daily)) {
    if (sum !== "pages") assert.equal(grouped[sum], daily[sum], `${method}: ${sum}`);
  }
  if (method !== "costs") {
    const hourly = await walk(method, object, { bucket_width: "1h", limit: 100 }, shapes);
    assert.deepEqual({ ...hourly, pages: 0 }, { ...daily, pages: 0 });
  }
}
await assert.rejects(
  () => usage.costs({ start_time, group_by: ["colour"] }),
  (error) => error instanceof OpenAI.BadRequestError && error.param === "group_by",
);
console.log(JSON.stringify(walked));
