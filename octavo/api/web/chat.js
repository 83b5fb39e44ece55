// The chat: conversations on the shelf, kept in this browser, one of them open.

import { button, byId, el, growing, notice, say, sendsOnEnter } from "./dom.js";
import { Thread } from "./thread.js";

const PREFIX = `octavo.chat.${new URL(".", document.baseURI).pathname}`; // servers below other paths have their own
const threads = new Map(); // of conversations seen since the page was loaded; an answer goes on while another is read
let current;
let options;

/** options(settings): the fields of a request but for its messages. */
export function startChat(makeOptions) {
  options = makeOptions;
  const input = byId("chat-input");
  const grow = growing(input);
  const send = () => {
    if (!input.value.trim() || thread().busy) return;
    thread().ask(input.value);
    input.value = "";
    grow();
  };
  byId("chat-form").addEventListener("submit", (event) => (event.preventDefault(), send()));
  sendsOnEnter(input, send);
  input.addEventListener("keydown", (event) => {
    if (event.key === "ArrowUp" && !input.value) event.preventDefault(), thread().editLast();
  });
  byId("chat-form").querySelector(".stop").addEventListener("click", () => stopChat());
  byId("new-chat").addEventListener("click", newChat);
  byId("toggle-shelf").addEventListener("click", () => openShelf(!isShelfOpen()));
  for (const sample of byId("chat-empty").querySelectorAll("button"))
    sample.addEventListener("click", () => thread().ask(sample.textContent));
  addEventListener("pagehide", () => [...threads.values()].forEach((each) => each.busy && save(each.conversation)));
  addEventListener("storage", (event) => event.key?.startsWith(PREFIX) && showShelf());
  open(stored()[0] ?? fresh());
}

/** Whether there was something to stop or to close. */
export function stopChat() {
  const busy = thread().busy;
  if (busy) thread().stop();
  const shelf = isShelfOpen();
  openShelf(false);
  if (busy) byId("chat-input").focus();
  else if (shelf) byId("toggle-shelf").focus();
  return busy || shelf;
}

export function newChat() {
  open(current.messages.length ? fresh() : current);
  byId("chat-input").focus();
}

export const settings = () => current.settings;

export function changeSettings(values) {
  current.settings = values;
  if (current.messages.length) save(current);
}

const newId = () => crypto.getRandomValues(new Uint32Array(2)).join("");
const fresh = () => ({ id: newId(), messages: [], settings: { ...current?.settings } });
const thread = () => threads.get(current.id);

function open(conversation) {
  current = threads.get(conversation.id)?.conversation ?? conversation;
  if (!threads.has(current.id)) {
    const list = el("div", { class: "messages", role: "log", "aria-label": "Conversation", tabindex: 0 });
    const mine = current;
    const made = new Thread(list, mine.messages, () => options(mine.settings), () => changed(mine));
    made.conversation = mine;
    threads.set(mine.id, made);
  }
  byId("chat-messages").replaceChildren(thread().list);
  thread().toEnd(true);
  openShelf(false);
  showState();
}

function changed(conversation) {
  save(conversation);
  showState();
}

function showState() {
  const { busy } = thread() ?? { busy: false };
  const form = byId("chat-form");
  form.querySelector(".primary").hidden = busy;
  form.querySelector(".stop").hidden = !busy;
  byId("chat-empty").hidden = current.messages.length > 0;
  byId("chat-messages").hidden = current.messages.length === 0;
  showShelf();
}

// ---------------------------------------------------------------- the shelf

function showShelf() {
  const focused = document.activeElement?.dataset?.chat;
  byId("conversations").replaceChildren(...stored().map((conversation) => {
    const title = titleOf(conversation);
    const entry = button(title, () => open(conversation), {
      class: "quiet", "data-chat": conversation.id, "aria-current": conversation.id === current.id && "true",
    });
    const remove = button("×", () => forget(conversation.id), { class: "quiet", "aria-label": `Delete “${title}”` });
    return el("li", null, entry, remove);
  }));
  if (focused) document.querySelector(`[data-chat="${focused}"]`)?.focus();
}

const titleOf = ({ messages }) => messages[0]?.content.trim().replace(/\s+/g, " ").slice(0, 60) || "Empty";
const isShelfOpen = () => byId("toggle-shelf").getAttribute("aria-expanded") === "true";

function openShelf(open) {
  byId("toggle-shelf").setAttribute("aria-expanded", open);
  byId("shelf").classList.toggle("open", open);
}

function forget(id) {
  threads.get(id)?.stop();
  threads.delete(id);
  localStorage.removeItem(PREFIX + id);
  if (id === current.id) open(stored()[0] ?? fresh());
  else showShelf();
  say("Deleted");
  byId("new-chat").focus();
}

// ---------------------------------------------------------------- what is kept

function stored() {
  const found = [];
  for (let i = 0; i < localStorage.length; i += 1) {
    const key = localStorage.key(i);
    if (!key.startsWith(PREFIX)) continue;
    try {
      const conversation = JSON.parse(localStorage.getItem(key));
      if (Array.isArray(conversation?.messages)) found.push(conversation);
    } catch {
      // not ours, or of another version: left alone
    }
  }
  return found.sort((a, b) => b.at - a.at);
}

function save(conversation) {
  if (!threads.has(conversation.id)) return; // deleted while its answer came
  conversation.at = Date.now();
  try {
    localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
  } catch {
    notice("This browser keeps no more conversations: delete some, or this one is lost with the tab.");
  }
}
