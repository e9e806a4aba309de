// One call of each kind with the official SDK; prints what came back as one JSON object.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: process.env.API_KEY });
const messages = [{ role: "user", content: "Hello!" }];
const model = process.env.MODEL;

const answer = await client.chat.completions.create({ model, messages });

let streamed = "";
let usage = null;
const stream = await client.chat.completions.create({
  model,
  messages,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}

const models = [];
for await (const listed of client.models.list()) models.push(listed.id);

let refused = null;
try {
  await new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "sk-og-garbage", maxRetries: 0 })
    .chat.completions.create({ model, messages });
} catch (error) {
  refused = { name: error.constructor.name, status: error.status, code: error.code };
}

console.log(JSON.stringify({
  content: answer.choices[0].message.content, streamed, usage, models, refused,
}));
