// Markdown to elements. What a model writes is untrusted: every piece of text becomes a text node, links lead to
// http, https and mail addresses only, images are named and not loaded. Of CommonMark it knows what models use.
//
// A library would have to be vendored with a sanitizer behind it, several times this file's size, and would build
// strings of HTML, which the page's policy forbids altogether.

import { copyButton, el } from "./dom.js";

const DEEPEST = 6; // lists in quotes in lists; deeper ones are text
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*)$/;
const RULE = /^ {0,3}(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])[ \t]+(?=\S)/;
const DELIMITERS = ["**", "__", "~~", "*", "_"];
const ELEMENTS = { "**": "strong", __: "strong", "~~": "del", "*": "em", _: "em" };

/** Shows text in an element. Called again with more, it leaves alone what has not changed. */
export function showMarkdown(target, text) {
  const blocks = split(text);
  const shown = (target.shown ??= []);
  let same = 0;
  while (same < shown.length && same < blocks.length && shown[same].source === blocks[same].source) same += 1;
  for (const block of shown.splice(same)) block.element.remove();
  for (const block of blocks.slice(same)) {
    block.element = render(block, 0);
    target.append(block.element);
    shown.push(block);
  }
}

/** The blocks of a text, each with its kind and its source. */
function split(text) {
  const lines = text.replaceAll("\r\n", "\n").split("\n");
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const [kind, end] = block(lines, at);
    const own = lines.slice(at, end);
    blocks.push({ kind, lines: own, source: own.join("\n") });
    at = end;
  }
  return blocks;
}

function block(lines, at) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return ["code", endOfFence(lines, at, fence[1])];
  if (HEADING.test(line)) return ["heading", at + 1];
  if (RULE.test(line)) return ["rule", at + 1];
  if (QUOTE.test(line)) return ["quote", run(lines, at, (next) => QUOTE.test(next))];
  if (ITEM.test(line)) return ["list", endOfList(lines, at)];
  if (isTable(lines, at)) return ["table", run(lines, at, (next) => next.includes("|"))];
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !begins(lines, end)) end += 1;
  return ["paragraph", end];
}

function begins(lines, at) {
  const line = lines[at];
  return [FENCE, HEADING, RULE, QUOTE, ITEM].some((mark) => mark.test(line)) || isTable(lines, at);
}

function run(lines, at, belongs) {
  while (at < lines.length && belongs(lines[at])) at += 1;
  return at;
}

function endOfFence(lines, at, mark) {
  for (let end = at + 1; end < lines.length; end += 1) {
    const text = lines[end].trim();
    if (text.startsWith(mark) && text === mark[0].repeat(text.length)) return end + 1;
  }
  return lines.length;
}

function endOfList(lines, at) {
  const ordered = isOrdered(lines[at]);
  const indent = ITEM.exec(lines[at])[1].length;
  let end = at + 1;
  for (; end < lines.length; end += 1) {
    const line = lines[end];
    if (!line.trim()) {
      const next = lines[end + 1] ?? "";
      if (/^ {2,}\S/.test(next) || (ITEM.test(next) && isOrdered(next) === ordered)) continue;
      return end;
    }
    const item = ITEM.exec(line);
    if (item && item[1].length <= indent && isOrdered(line) !== ordered) return end;
    if (!item && !line.startsWith("  ") && begins(lines, end)) return end;
  }
  return end;
}

const isOrdered = (line) => /^ *\d/.test(line);
const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());

function isTable(lines, at) {
  if (!lines[at].includes("|") || !lines[at + 1]?.includes("-")) return false;
  const marks = cells(lines[at + 1]);
  return marks.length === cells(lines[at]).length && marks.every((mark) => /^:?-+:?$/.test(mark));
}

function render(block, depth) {
  return RENDERERS[depth > DEEPEST ? "paragraph" : block.kind](block.lines, depth);
}

const inside = (lines, depth) => split(lines.join("\n")).map((block) => render(block, depth + 1));

function code(lines) {
  const [, mark, info] = FENCE.exec(lines[0]);
  const last = lines.at(-1).trim();
  const closed = lines.length > 1 && last.startsWith(mark) && last === mark[0].repeat(last.length);
  const text = lines.slice(1, closed ? -1 : undefined).join("\n");
  return codeBlock(text, info.trim().split(/\s/)[0]);
}

/** Code with its language's name and a button that copies it. */
export function codeBlock(text, name) {
  return el("div", { class: "code" },
    el("div", { class: "row" }, el("span", null, name || "text"), copyButton(() => text)),
    el("pre", { tabindex: 0 }, el("code", null, text)));
}

function heading([line]) {
  const [, marks, text] = HEADING.exec(line);
  return el(`h${Math.min(marks.length + 1, 6)}`, null, ...inline(text.replace(/[ \t]+#+[ \t]*$/, "")));
}

const rule = () => el("hr");
const quote = (lines, depth) => el("blockquote", null, ...inside(lines.map((line) => line.replace(QUOTE, "")), depth));
const paragraph = (lines) => el("p", null, ...inline(lines.map((line) => line.trimStart()).join("\n")));

function list(lines, depth) {
  const indent = ITEM.exec(lines[0])[1].length;
  const items = [];
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && item[1].length <= indent + 1) items.push({ width: item[0].length, lines: [line.slice(item[0].length)] });
    else items.at(-1).lines.push(unindent(line, items.at(-1).width));
  }
  const ordered = isOrdered(lines[0]);
  return el(ordered ? "ol" : "ul", ordered ? { start: Number.parseInt(lines[0], 10) } : null,
    ...items.map((item) => el("li", null, ...tight(inside(item.lines, depth)))));
}

const unindent = (line, width) => line.slice(Math.min(width, line.length - line.trimStart().length));

/** An item's only paragraph is its text. */
function tight(elements) {
  const paragraphs = elements.filter((element) => element.localName === "p");
  return paragraphs.length === 1 && elements[0] === paragraphs[0]
    ? [...elements[0].childNodes, ...elements.slice(1)]
    : elements;
}

function table(lines) {
  const [head, marks, ...rows] = lines.map(cells);
  const side = marks.map((mark) => (mark.endsWith(":") ? (mark.startsWith(":") ? "center" : "end") : null));
  const row = (values, tag) =>
    el("tr", null, ...head.map((_, i) => el(tag, { class: side[i] }, ...inline(values[i] ?? ""))));
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table" },
    el("table", null, el("thead", null, row(head, "th")), el("tbody", null, ...rows.map((each) => row(each, "td")))));
}

const RENDERERS = { code, heading, rule, quote, list, table, paragraph };

/** Text with emphasis, code and links to nodes. */
function inline(text, depth = 0) {
  const nodes = [];
  const missing = new Set(); // delimiters that do not come again
  let plain = "";
  let at = 0;
  const add = (node, end) => {
    if (node.localName === "br") plain = plain.trimEnd();
    if (plain) nodes.push(plain);
    plain = "";
    nodes.push(node);
    at = end;
  };
  while (at < text.length) {
    const found = depth < DEEPEST && MARKS.test(text[at]) ? mark(text, at, depth, missing) : null;
    if (found?.literal != null) {
      plain += found.literal;
      at = found.end;
    } else if (found) add(found.node, found.end);
    else plain += text[at++];
  }
  if (plain) nodes.push(plain);
  return nodes;
}

const MARKS = /[\\`*_~[!h\n<]/;

/** What begins at a place: {node, end}, {literal, end} or null. */
function mark(text, at, depth, missing) {
  switch (text[at]) {
    case "\\":
      return /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "") ? { literal: text[at + 1], end: at + 2 } : null;
    case "\n":
      return text.slice(at - 2, at) === "  " ? { node: el("br"), end: at + 1 } : null;
    case "`":
      return codeSpan(text, at, missing);
    case "!":
      return text[at + 1] === "[" ? link(text, at + 1, depth, missing, true) : null;
    case "[":
      return link(text, at, depth, missing, false);
    case "<":
      return bareAddress(text, at + 1, ">");
    case "h":
      return /\w/.test(text[at - 1] ?? "") ? null : bareAddress(text, at, "");
    default:
      return emphasis(text, at, depth, missing);
  }
}

function codeSpan(text, at, missing) {
  const ticks = /^`+/.exec(text.slice(at, at + 100))[0];
  const end = missing.has(ticks) ? -1 : text.indexOf(ticks, at + ticks.length);
  if (end < 0) {
    missing.add(ticks);
    return { literal: ticks, end: at + ticks.length };
  }
  const inner = text.slice(at + ticks.length, end).replaceAll("\n", " ");
  const trimmed = /^ .*\S.* $/.test(inner) ? inner.slice(1, -1) : inner;
  return { node: el("code", null, trimmed), end: end + ticks.length };
}

function link(text, at, depth, missing, image) {
  const middle = missing.has("](") ? -1 : text.indexOf("](", at);
  if (middle < 0) {
    missing.add("](");
    return null;
  }
  const match = /^\(\s*<?((?:[^\s()<>]|\([^\s()<>]*\))*)>?(?:\s+"[^"]*")?\s*\)/.exec(text.slice(middle + 1, middle + 3000));
  const label = text.slice(at + 1, middle);
  if (!match || label.includes("[")) return null;
  const end = middle + 1 + match[0].length;
  const inner = image ? [`image: ${label || match[1]}`] : inline(label, depth + 1);
  return { node: anchor(match[1], inner), end };
}

function bareAddress(text, at, close) {
  const match = /^https?:\/\/[^\s<>"`]+/.exec(text.slice(at, at + 2000));
  if (!match) return null;
  const address = close ? match[0] : match[0].replace(/[.,;:!?*_~)\]'"]+$/, "");
  const end = at + address.length;
  if (close && text[end] !== close) return null;
  return { node: anchor(address, [address]), end: end + close.length };
}

/** A link, or its text alone if it leads where an answer has no business. */
function anchor(address, inner) {
  let url = null;
  try {
    url = new URL(address);
  } catch {
    // no address of its own: part of this server, or nonsense
  }
  if (!url || !["http:", "https:", "mailto:"].includes(url.protocol)) return el("span", null, ...inner);
  const properties = { href: url.href, title: url.href, target: "_blank", rel: "noopener noreferrer nofollow" };
  return el("a", properties, ...inner);
}

function emphasis(text, at, depth, missing) {
  const delimiter = DELIMITERS.find((each) => text.startsWith(each, at));
  if (!delimiter || missing.has(delimiter)) return null;
  const begin = at + delimiter.length;
  const within = delimiter.startsWith("_");
  if (/\s/.test(text[begin] ?? " ") || (within && /\w/.test(text[at - 1] ?? ""))) return null;
  let end = begin;
  for (let tries = 0; tries < 20; tries += 1) {
    end = text.indexOf(delimiter, end + 1);
    if (end < 0) {
      missing.add(delimiter);
      return null;
    }
    if (delimiter === "**" && text[end + 2] === "*") end += 1; // of ***both***
    const after = text[end + delimiter.length] ?? "";
    const longer = delimiter.length === 1 && (after === delimiter || text[end - 1] === delimiter);
    if (!longer && !/\s/.test(text[end - 1]) && !(within && /\w/.test(after))) {
      const node = el(ELEMENTS[delimiter], null, ...inline(text.slice(begin, end), depth + 1));
      return { node, end: end + delimiter.length };
    }
  }
  return null;
}
