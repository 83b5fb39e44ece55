// Elements made one by one: text stays text, whatever it contains.

export const byId = (id) => document.getElementById(id);

/** An element. Properties: "class", "on…" for listeners, else attributes (true: present, false and null: left out). */
export function el(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

export const button = (label, onclick, properties) => el("button", { type: "button", onclick, ...properties }, label);

/** Says something to those who do not see the page. */
export function say(text) {
  byId("status").textContent = text;
}

/** An error that concerns the whole page; null takes it away. */
export function notice(text) {
  byId("notice").hidden = text == null;
  if (byId("notice").textContent !== text) byId("notice").textContent = text ?? ""; // said once
}

export function copyButton(text, label = "Copy") {
  const copy = button(label, async () => {
    try {
      await navigator.clipboard.writeText(text());
    } catch {
      copyBySelection(text()); // pages that are not on https or localhost have no clipboard
    }
    copy.textContent = "Copied";
    say("Copied");
    setTimeout(() => (copy.textContent = label), 1500);
  }, { class: "quiet" });
  return copy;
}

function copyBySelection(text) {
  const field = el("textarea", { class: "hidden" });
  const focused = document.activeElement;
  field.value = text;
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
  focused?.focus();
}

/** A textarea that grows with what is in it. */
export function growing(area) {
  const grow = () => {
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
  };
  area.addEventListener("input", grow);
  return grow;
}

/** Enter sends, Shift+Enter breaks the line; an input method that still composes keeps its Enter. */
export function sendsOnEnter(area, send) {
  area.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
}
