// The page: which view is seen, which model is asked, settings, theme, key and keyboard.

import { ApiError, getJson, onKeyWanted } from "./api.js";
import { changeSettings, newChat, settings, startChat, stopChat } from "./chat.js";
import { byId, el, notice, say } from "./dom.js";
import { draw, startLive, watch } from "./live.js";
import { startTryouts, stopTryout } from "./tryout.js";

const VIEWS = ["chat", "schema", "tools", "live"];
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"];
const MODEL = "octavo.model";

// ---------------------------------------------------------------- views

function show() {
  const view = VIEWS.find((name) => location.hash === `#${name}`) ?? "chat";
  for (const name of VIEWS) byId(`view-${name}`).hidden = name !== view;
  for (const link of byId("views").children) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${byId("views").querySelector("[aria-current]").textContent} · octavo`;
  watch();
  if (view === "chat" && matchMedia("(pointer: fine)").matches) byId("chat-input").focus();
}

// ---------------------------------------------------------------- what a request says

/** The fields of a chat request but for its messages; `system` becomes one. */
function requestOptions(values = settings()) {
  const fields = { model: byId("model").value, system: values.system };
  for (const name of NUMBERS) if (values[name]) fields[name] = Number(values[name]);
  const stop = (values.stop ?? "").split("\n").filter(Boolean);
  return stop.length ? { ...fields, stop } : fields;
}

const STATES = { declared: "loads when asked" };

let retry = null;

async function loadModels() {
  clearTimeout(retry);
  try {
    const { data } = await getJson("v1/models");
    notice(null);
    const select = byId("model");
    const chosen = select.value && !select.disabled ? select.value : localStorage.getItem(MODEL);
    const names = data.flatMap(({ id, state, versions = [] }) => [
      [id, state],
      ...(versions.length > 1 ? versions.map((each) => [`${id}:${each.version}`, each.state]) : []),
    ]);
    const labels = names.map(([name, state]) => ((state ?? "ready") === "ready" ? name : `${name} (${STATES[state] ?? state})`));
    if ([...select.options].map((option) => option.text).join("\n") !== labels.join("\n"))
      select.replaceChildren(...names.map(([name], i) => el("option", { value: name }, labels[i])));
    select.disabled = names.length === 0;
    if (names.some(([name]) => name === chosen)) select.value = chosen;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.status === 404) {
      location.hash = "live"; // models are not answered for on an admin port
      return;
    }
    notice(error.message);
    if (error.status === 503 || error.status === 0) retry = setTimeout(loadModels, Math.max(error.retryAfter, 2) * 1000);
  }
}

// ---------------------------------------------------------------- dialogs

function openSettings() {
  const form = byId("settings").querySelector("form");
  for (const field of form.elements) if (field.name) field.value = settings()[field.name] ?? "";
  byId("settings").showModal();
}

function readSettings() {
  const form = byId("settings").querySelector("form");
  changeSettings(Object.fromEntries(new FormData(form)));
}

async function openHelp() {
  byId("help").showModal();
  const { version } = await getJson("version", { quiet: true }).catch(() => ({}));
  byId("version").textContent = version ? `octavo ${version}` : "";
}

function askForKey(why) {
  const dialog = byId("key");
  byId("key-why").textContent = why;
  byId("key-input").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue ? byId("key-input").value.trim() : null), { once: true });
  });
}

// ---------------------------------------------------------------- theme and keyboard

const systemTheme = () => (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");

function labelTheme() {
  const other = (document.documentElement.dataset.theme ?? systemTheme()) === "dark" ? "light" : "dark";
  byId("theme").setAttribute("aria-label", `Change to the ${other} theme`);
  byId("theme").dataset.other = other;
}

function changeTheme() {
  const { other } = byId("theme").dataset;
  if (other === systemTheme()) {
    delete document.documentElement.dataset.theme; // the system's again
    localStorage.removeItem("octavo.theme");
  } else {
    document.documentElement.dataset.theme = other;
    localStorage.setItem("octavo.theme", other);
  }
  labelTheme();
  draw();
  say(`The ${other} theme`);
}

function onKey(event) {
  if (document.querySelector("dialog[open]")) return; // it has its own Escape
  if (event.key === "Escape" && (byId("view-chat").hidden ? stopTryout() : stopChat())) event.preventDefault();
  if (event.ctrlKey && event.key === "/") event.preventDefault(), openHelp();
  if (!event.altKey || !event.shiftKey) return;
  const view = VIEWS[Number(/^Digit([1-4])$/.exec(event.code)?.[1]) - 1];
  if (view) location.hash = view;
  else if (event.code === "KeyN") (location.hash = "chat"), newChat();
  else if (event.code === "KeyS") openSettings();
  else return;
  event.preventDefault();
}

// ---------------------------------------------------------------- start

onKeyWanted(askForKey);
startChat(requestOptions);
startTryouts(() => requestOptions());
startLive();
byId("open-settings").addEventListener("click", openSettings);
byId("settings").addEventListener("close", readSettings);
byId("reset-settings").addEventListener("click", () => {
  for (const field of byId("settings").querySelector("form").elements) if (field.name) field.value = "";
});
byId("open-help").addEventListener("click", openHelp);
byId("theme").addEventListener("click", changeTheme);
byId("model").addEventListener("change", () => localStorage.setItem(MODEL, byId("model").value));
addEventListener("focus", loadModels); // others may have been loaded meanwhile
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", labelTheme);
addEventListener("keydown", onKey);
addEventListener("hashchange", show);
labelTheme();
show();
loadModels();
