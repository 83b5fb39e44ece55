// A conversation on the page: its messages, the answer that is being streamed, tool calls and their results.
//
// `messages` is plain data, kept as the API takes it but for what is only shown: reasoning, `note` (how it went).

import { ApiError, streamChat } from "./api.js";
import { button, copyButton, el, growing, say } from "./dom.js";
import { codeBlock, showMarkdown } from "./markdown.js";

export class Thread {
  /** options(): the fields of a request but for its messages. changed(): data or `busy` is another now. */
  constructor(list, messages, options, changed) {
    Object.assign(this, { list, messages, options, changed, busy: false, views: [], seen: new WeakMap() });
    this.show();
  }

  async ask(text) {
    this.messages.push({ role: "user", content: text });
    await this.answer();
  }

  /** Lets the model go on after the last message. */
  async answer() {
    if (this.busy) return;
    const message = { role: "assistant", content: "" };
    const { system, ...fields } = this.options();
    const body = { ...fields, messages: wire(system, this.messages), stream_options: { include_usage: true } };
    this.messages.push(message);
    this.control = new AbortController();
    this.setBusy(true);
    this.show();
    this.toEnd(true);
    const took = new Clock();
    try {
      for await (const event of streamChat(body, this.control.signal)) {
        take(message, event, took);
        this.paintSoon();
      }
    } catch (error) {
      if (error.name === "AbortError") message.stopped = true;
      else if (error instanceof ApiError) message.error = { message: error.message, requestId: error.requestId };
      else throw error;
    } finally {
      message.note = took.note(message);
      this.setBusy(false);
      this.show();
      this.toEnd();
      say(message.error ? message.error.message : message.stopped ? "Stopped" : "The answer is complete");
    }
  }

  stop() {
    this.control?.abort();
  }

  setBusy(busy) {
    this.busy = busy;
    this.list.setAttribute("aria-busy", busy); // what streams in is read out once it is whole
    if (busy) say("The model is answering");
    this.changed();
  }

  /** The last question, to be said otherwise. */
  editLast() {
    const at = this.messages.findLastIndex((message) => message.role === "user");
    if (at >= 0 && !this.busy) this.edit(at);
  }

  edit(at) {
    const area = el("textarea", { "aria-label": "Message", rows: 2 });
    const send = () => {
      if (!area.value.trim()) return;
      this.messages.splice(at);
      this.ask(area.value);
    };
    const cancel = () => {
      this.show();
      this.views[at].querySelector("button")?.focus();
    };
    area.value = this.messages[at].content;
    const grow = growing(area);
    area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) event.preventDefault(), send();
      if (event.key === "Escape") event.stopPropagation(), cancel();
    });
    this.views[at].replaceChildren(area,
      el("div", { class: "row" }, button("Send", send, { class: "primary" }), button("Cancel", cancel, { class: "quiet" })));
    grow();
    area.focus();
  }

  regenerate(at) {
    this.messages.splice(at);
    this.answer();
  }

  // ---------------------------------------------------------------- what is seen

  show() {
    let leaf = 0;
    const focused = this.list.contains(document.activeElement);
    this.views = this.messages.map((message) => {
      if (message.role === "user") leaf += 1;
      const view = this.seen.get(message) ?? el("article", { class: message.role, "aria-label": NAMES[message.role] });
      this.seen.set(message, view);
      view.dataset.folio = leaf;
      return view;
    });
    this.views.forEach((_, at) => this.fill(at));
    const shown = this.views.filter((_, at) => this.messages[at].role !== "tool");
    for (const view of [...this.list.children]) if (!shown.includes(view)) view.remove();
    for (const [i, view] of shown.entries())
      if (this.list.children[i] !== view) this.list.insertBefore(view, this.list.children[i] ?? null);
    if (focused && !this.list.contains(document.activeElement)) this.list.focus(); // what was focused is gone
  }

  fill(at) {
    const message = this.messages[at];
    if (message.role === "user") this.fillQuestion(this.views[at], message, at);
    if (message.role === "assistant") this.fillAnswer(this.views[at], message, at);
  }

  fillQuestion(view, message, at) {
    const edit = button("Edit", () => this.edit(at), { class: "quiet", disabled: this.busy });
    view.replaceChildren(el("p", { class: "said" }, message.content),
      el("div", { class: "row actions" }, edit, copyButton(() => message.content)));
  }

  fillAnswer(view, message, at) {
    const streams = this.busy && at === this.messages.length - 1;
    if (!view.text) {
      view.thought = el("div", { class: "said" });
      view.reasoning = el("details", null, el("summary", null, "Reasoning"), view.thought);
      view.text = el("div", { class: "said" });
      view.calls = el("div");
      view.end = el("div");
      view.append(view.reasoning, view.text, view.calls, view.end);
    }
    view.classList.toggle("streams", streams);
    view.reasoning.hidden = !message.reasoning;
    view.reasoning.firstChild.textContent = streams && !message.content ? "Reasoning…" : "Reasoning";
    showMarkdown(view.thought, message.reasoning ?? "");
    showMarkdown(view.text, message.content);
    view.calls.replaceChildren(...(message.tool_calls ? [this.toolCalls(message, at)] : []));
    view.end.replaceChildren(...(streams ? [] : this.ending(message, at)));
  }

  ending(message, at) {
    const { error, stopped, note } = message;
    const last = at === this.messages.length - 1;
    return [
      error && el("p", { class: "error", role: "alert" }, error.message,
        error.requestId ? el("span", { class: "small" }, ` Request ${error.requestId}`) : null),
      el("div", { class: "row actions" },
        message.content ? copyButton(() => message.content) : null,
        last ? button(error ? "Try again" : "Regenerate", () => this.regenerate(at), { class: "quiet" }) : null,
        el("span", { class: "small" }, [stopped && "Stopped", note].filter(Boolean).join(" · "))),
    ].filter(Boolean);
  }

  toolCalls(message, at) {
    const results = new Map(this.messages.slice(at + 1).filter((each) => each.role === "tool")
      .map((each) => [each.tool_call_id, each.content]));
    const open = !this.busy && at === this.messages.length - 1;
    const areas = new Map();
    const boxes = message.tool_calls.map((call) => {
      const box = el("div", { class: "call" }, codeBlock(pretty(call.function.arguments), `call ${call.function.name}`));
      if (results.has(call.id)) box.append(codeBlock(results.get(call.id), "result"));
      else if (open) {
        const area = el("textarea", { class: "code", rows: 2 });
        areas.set(call.id, area);
        box.append(el("label", null, `What ${call.function.name} returns `, area));
      }
      return box;
    });
    const send = () => {
      for (const [id, area] of areas) this.messages.push({ role: "tool", tool_call_id: id, content: area.value });
      this.answer();
    };
    return el("div", null, ...boxes,
      areas.size ? button(areas.size > 1 ? "Return all and go on" : "Return it and go on", send, { class: "primary" }) : null);
  }

  paintSoon() {
    this.painting ??= requestAnimationFrame(() => {
      this.painting = null;
      if (!this.busy) return;
      const follow = this.isAtEnd();
      this.fill(this.messages.length - 1);
      if (follow) this.toEnd(true);
    });
  }

  isAtEnd() {
    return this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight < 60;
  }

  toEnd(always = false) {
    if (always || this.isAtEnd()) this.list.scrollTop = this.list.scrollHeight;
  }
}

const NAMES = { user: "You", assistant: "Answer", tool: "Result" };

function wire(system, messages) {
  const sent = messages
    .filter((message) => message.role !== "assistant" || message.content || message.tool_calls)
    .map(({ role, content, tool_calls, tool_call_id }) =>
      ({ role, content: content || (tool_calls ? null : ""), tool_calls, tool_call_id }));
  return system?.trim() ? [{ role: "system", content: system }, ...sent] : sent;
}

/** Adds an event of the stream to the message. */
function take(message, event, took) {
  const choice = event.choices?.[0];
  if (event.usage) took.tokens = event.usage.completion_tokens;
  if (!choice) return;
  const { content, reasoning_content: reasoning, tool_calls: calls } = choice.delta;
  if (content || reasoning || calls) took.progress();
  message.content += content ?? "";
  if (reasoning) message.reasoning = (message.reasoning ?? "") + reasoning;
  for (const part of calls ?? []) {
    const all = (message.tool_calls ??= []);
    const call = (all[part.index] ??= { id: part.id, type: "function", function: { name: "", arguments: "" } });
    call.function.name += part.function?.name ?? "";
    call.function.arguments += part.function?.arguments ?? "";
  }
  took.reason = choice.finish_reason ?? took.reason;
}

/** How long an answer took, in words. */
class Clock {
  constructor() {
    this.began = performance.now();
    this.tokens = 0;
  }

  progress() {
    this.last = performance.now();
    this.first ??= this.last;
  }

  note(message) {
    const parts = [];
    if (this.reason === "length") parts.push("cut at the most tokens allowed");
    if (this.tokens) parts.push(`${this.tokens} token${this.tokens === 1 ? "" : "s"}`);
    if (this.tokens > 1 && this.last > this.first)
      parts.push(`${(((this.tokens - 1) * 1000) / (this.last - this.first)).toFixed(1)} tokens/s`);
    if (this.first) parts.push(`first after ${((this.first - this.began) / 1000).toFixed(2)} s`);
    if (this.reason && !message.content && !message.tool_calls && !message.reasoning) parts.push("an empty answer");
    return parts.join(" · ");
  }
}

export function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
