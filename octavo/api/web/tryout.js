// The two benches: answers that follow a JSON schema, and tools whose results the user types.

import { ApiError, streamChat } from "./api.js";
import { byId, el, say } from "./dom.js";
import { codeBlock } from "./markdown.js";
import { check } from "./schema.js";
import { Thread, pretty } from "./thread.js";

const text = { type: "string" };
const object = (properties) =>
  ({ type: "object", properties, required: Object.keys(properties), additionalProperties: false });
const tool = (name, description, properties) =>
  ({ type: "function", function: { name, description, parameters: object(properties) } });

const SCHEMAS = {
  "A person": [
    object({ name: text, age: { type: "integer", minimum: 0, maximum: 130 }, languages: { type: "array", items: text, maxItems: 3 } }),
    "Ada is 36 and speaks English and French. Who is she?",
  ],
  "A mood": [
    object({ mood: { enum: ["glad", "calm", "sad", "angry"] }, sure: { type: "number", minimum: 0, maximum: 1 } }),
    "How does this sound? “At last the rain is over, let us go out!”",
  ],
  "A recipe": [
    object({
      title: text,
      minutes: { type: "integer", minimum: 1, maximum: 240 },
      steps: { type: "array", minItems: 2, maxItems: 5, items: object({ do: text, heat: { type: "boolean" } }) },
    }),
    "How do I make pancakes?",
  ],
};
const TOOLS = {
  Weather: [
    [tool("get_weather", "The weather in a city now", { city: text, unit: { enum: ["celsius", "fahrenheit"] } })],
    "What is the weather like in Lisbon, in celsius?",
  ],
  Library: [
    [
      tool("find_book", "Books whose title has these words", { words: text }),
      tool("lend_book", "Lend a book to a reader", { book_id: { type: "integer" }, reader: text }),
    ],
    "Is there a book on bookbinding? If so, lend it to Ada.",
  ],
};

export function startTryouts(options) {
  startSchema(options);
  startTools(options);
}

/** Whether there was something to stop. */
export function stopTryout() {
  const stop = document.querySelector(".bench:not([hidden]) .stop:not([hidden])");
  stop?.click();
  return stop != null;
}

// ---------------------------------------------------------------- schemas

function startSchema(options) {
  offer("schema", SCHEMAS);
  let control = null;
  const busy = (is) => setBusy("schema", is);
  const ask = async () => {
    const schema = read("schema-text");
    if (schema === undefined || control) return;
    control = new AbortController();
    busy(true);
    try {
      await showAnswer(options, schema, control.signal);
    } finally {
      control = null;
      busy(false);
    }
  };
  wire("schema", ask, () => control?.abort());
}

async function showAnswer(options, schema, signal) {
  const result = byId("schema-result");
  const { system, ...fields } = options();
  const question = { role: "user", content: byId("schema-prompt").value };
  const body = {
    ...fields,
    messages: system?.trim() ? [{ role: "system", content: system }, question] : [question],
    response_format: { type: "json_schema", json_schema: { name: "answer", schema, strict: true } },
  };
  let answer = "";
  let reason = null;
  const raw = el("code");
  result.replaceChildren(el("pre", null, raw));
  try {
    for await (const event of streamChat(body, signal)) {
      const choice = event.choices?.[0];
      answer += choice?.delta.content ?? "";
      reason = choice?.finish_reason ?? reason;
      raw.textContent = answer;
    }
    result.replaceChildren(...verdict(answer, schema, reason), codeBlock(pretty(answer), "answer"));
    say("The answer is complete");
  } catch (error) {
    if (error.name === "AbortError") result.prepend(el("p", { class: "small" }, "Stopped."));
    else if (error instanceof ApiError) result.replaceChildren(problem(error));
    else throw error;
  }
}

function verdict(answer, schema, reason) {
  let value;
  try {
    value = JSON.parse(answer);
  } catch {
    const cut = reason === "length" ? ": it was cut at the most tokens allowed" : "";
    return [el("p", { class: "error" }, `The answer is no JSON${cut}.`)];
  }
  const { problems, unknown } = check(value, schema);
  const unseen = unknown.length ? el("p", { class: "small" }, `Not looked at: ${unknown.join(", ")}.`) : null;
  const words = problems.length
    ? el("ul", { class: "error" }, ...problems.map((each) => el("li", null, `${each}.`)))
    : el("p", { class: "good" }, "Follows the schema.");
  return [words, unseen].filter(Boolean);
}

const problem = (error) =>
  el("p", { class: "error", role: "alert" }, error.message,
    error.requestId ? el("span", { class: "small" }, ` Request ${error.requestId}`) : null);

// ---------------------------------------------------------------- tools

function startTools(options) {
  offer("tools", TOOLS);
  let tools = [];
  const fields = () => {
    const { value } = byId("tools-choice");
    const returned = thread.messages.at(-1)?.role === "tool"; // who must call a tool has done so, and may answer now
    const choice = value === "required" && returned ? "auto" : value;
    return { ...options(), tools, tool_choice: choice, parallel_tool_calls: !byId("tools-single").checked };
  };
  const list = byId("tools-messages");
  const thread = new Thread(list, [], fields, () => setBusy("tools", thread.busy));
  const ask = () => {
    const given = read("tools-text");
    if (given === undefined || thread.busy || !byId("tools-prompt").value.trim()) return;
    tools = given;
    thread.messages.splice(0);
    thread.ask(byId("tools-prompt").value);
  };
  wire("tools", ask, () => thread.stop());
}

// ---------------------------------------------------------------- what both have

/** Examples to begin with: name to [JSON, prompt]. */
function offer(view, examples) {
  const choice = byId(`${view}-example`);
  choice.append(...Object.keys(examples).map((name) => el("option", null, name)));
  const show = () => {
    const [json, prompt] = examples[choice.value];
    byId(`${view}-text`).value = JSON.stringify(json, null, 2);
    byId(`${view}-prompt`).value = prompt;
    read(`${view}-text`);
  };
  choice.addEventListener("change", show);
  byId(`${view}-text`).addEventListener("input", () => read(`${view}-text`));
  show();
}

/** The JSON in a field; undefined, and said so below the field, if it is none. */
function read(id) {
  const area = byId(id);
  const words = (area.problem ??= el("p", { class: "error small", id: `${id}-problem` }));
  try {
    const value = JSON.parse(area.value);
    words.remove();
    area.removeAttribute("aria-invalid");
    area.removeAttribute("aria-describedby");
    return value;
  } catch (error) {
    words.textContent = `This is no JSON: ${error.message}`;
    area.after(words);
    area.setAttribute("aria-invalid", "true");
    area.setAttribute("aria-describedby", words.id);
    return undefined;
  }
}

function wire(view, ask, stop) {
  byId(`${view}-form`).addEventListener("submit", (event) => (event.preventDefault(), ask()));
  byId(`${view}-form`).querySelector(".stop").addEventListener("click", stop);
  byId(`${view}-form`).addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.preventDefault(), ask();
  });
}

function setBusy(view, busy) {
  byId(`${view}-form`).querySelector(".primary").hidden = busy;
  byId(`${view}-form`).querySelector(".stop").hidden = !busy;
  if (!busy) return;
  say("The model is answering");
  document.querySelector(`#view-${view} .result`).scrollIntoView({ block: "nearest" }); // below the form on a small screen
}
