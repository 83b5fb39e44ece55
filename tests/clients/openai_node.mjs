// The `openai` package of npm: chat, streams, tools, structured output, responses, embeddings.
import OpenAI from "openai";

const [url, model, embedder] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Name three rivers." }];
const weather = {
  name: "get_weather",
  parameters: {
    type: "object",
    properties: { city: { type: "string", maxLength: 40 } },
    required: ["city"],
    additionalProperties: false,
  },
};

async function check(name, work) {
  let result = { check: name, ok: true, note: "" };
  try {
    await work();
  } catch (error) {
    result = { ...result, ok: false, why: String(error).slice(0, 2000) };
    console.error(error);
  }
  console.log(JSON.stringify(result));
}

function same(one, other) {
  if (one !== other) throw new Error(`${JSON.stringify(one)} is not ${JSON.stringify(other)}`);
}

await check("chat, whole and streamed, say the same", async () => {
  const options = { model, messages, temperature: 0, max_tokens: 40 };
  const whole = await client.chat.completions.create(options);
  let text = "";
  for await (const chunk of await client.chat.completions.create({ ...options, stream: true })) {
    text += chunk.choices[0]?.delta?.content ?? "";
  }
  same(text, whole.choices[0].message.content);
});

await check("a required tool is called, streamed", async () => {
  const runner = client.chat.completions.stream({
    model, messages, tools: [{ type: "function", function: weather }], tool_choice: "required",
    parallel_tool_calls: false, max_tokens: 200,
  });
  const final = await runner.finalChatCompletion();
  same(typeof JSON.parse(final.choices[0].message.tool_calls[0].function.arguments).city, "string");
});

await check("response_format json_schema", async () => {
  const answer = await client.chat.completions.create({
    model, messages, max_tokens: 200,
    response_format: { type: "json_schema", json_schema: { name: "w", strict: true, schema: weather.parameters } },
  });
  same(typeof JSON.parse(answer.choices[0].message.content).city, "string");
});

await check("responses.create and its stream", async () => {
  const options = { model, input: "Name three rivers.", temperature: 0, max_output_tokens: 40, store: false };
  const whole = await client.responses.create(options);
  let text = "";
  for await (const event of await client.responses.create({ ...options, stream: true })) {
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  same(text, whole.output_text);
});

await check("embeddings", async () => {
  const answer = await client.embeddings.create({ model: embedder, input: ["one", "two"] });
  same(answer.data.length, 2);
});

await check("a mistake is a BadRequestError", async () => {
  const error = await client.chat.completions.create({ model, messages, top_p: 2 }).catch((error) => error);
  same(error.constructor.name, "BadRequestError");
});
