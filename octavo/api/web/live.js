// The live view: asks the server once a second while it is looked at, and keeps the last minutes for the charts.

import { ApiError, getJson } from "./api.js";
import { drawLines, drawPages } from "./chart.js";
import { byId, el } from "./dom.js";

const SECOND = 1000;
const SPAN = 300; // seconds that the charts show at most
const history = new Map(); // title -> samples, oldest first
let timer = null;
let answer = null;
let paused = false;

export function startLive() {
  byId("live-model").addEventListener("change", draw);
  byId("live-pause").addEventListener("click", () => {
    paused = !paused;
    byId("live-pause").setAttribute("aria-pressed", paused);
    watch();
  });
  addEventListener("visibilitychange", watch);
  new ResizeObserver(draw).observe(byId("view-live"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}

/** To be called when the view is shown or hidden. */
export function watch() {
  clearTimeout(timer);
  timer = null;
  if (!paused && !byId("view-live").hidden && !document.hidden) look();
}

async function look() {
  timer = -1;
  let wait = SECOND;
  try {
    answer = await getJson("v1/live");
    for (const model of answer.models) {
      const versions = answer.models.filter(({ name }) => name === model.name).length;
      model.title = versions > 1 ? `${model.name} (version ${model.version})` : model.name;
      remember(model);
    }
    draw();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    byId("live-state").textContent = error.message;
    if ([401, 403, 404].includes(error.status)) return; // asking again would not help
    wait = 3 * SECOND;
  }
  if (timer === -1) timer = setTimeout(look, wait);
}

function remember(model) {
  const samples = history.get(model.title) ?? [];
  history.set(model.title, samples);
  const now = performance.now() / SECOND;
  const { time, totals } = model.engine;
  const earlier = samples.at(-3) ?? samples[0]; // two or three seconds: steadier than one
  const before = earlier?.totals;
  const seconds = before ? time - earlier.time : 0;
  const grown = (name) => Math.max(0, totals[name] - before[name]);
  const mean = (name) => (before && grown(`${name}_count`) > 0 ? grown(`${name}_sum`) / grown(`${name}_count`) : null);
  samples.push({
    at: now,
    time,
    totals,
    speed: seconds > 0 ? [grown("generation_tokens") / seconds, grown("prompt_tokens") / seconds] : [null, null],
    latency: [mean("time_to_first_token_seconds"), mean("inter_token_latency_seconds")],
  });
  while (samples[0].at < now - SPAN - 5) samples.shift();
}

/** Everything, with the newest that is known. */
export function draw() {
  if (!answer || byId("view-live").hidden) return;
  const model = choose(answer.models);
  if (!model) {
    byId("live-state").textContent = "No model is loaded.";
    return;
  }
  const { engine } = model;
  byId("live-state").textContent = `${model.title} · ${STATES[engine.state] ?? engine.state}`;
  const samples = history.get(model.title);
  drawFigures(engine, samples);
  drawBlocks(engine.blocks);
  drawCharts(samples);
  drawRequests(engine.requests, engine.hidden_requests);
}

const STATES = { ready: "ready", loading: "loading", recovering: "being restarted", asleep: "asleep", dead: "stopped" };

function choose(models) {
  const select = byId("live-model");
  const names = models.map((model) => model.title);
  if ([...select.options].map((option) => option.value).join("\n") !== names.join("\n")) {
    const before = select.value;
    select.replaceChildren(...names.map((name) => el("option", null, name)));
    if (names.includes(before)) select.value = before;
    select.hidden = names.length < 2;
  }
  return models.find((model) => model.title === select.value);
}

const count = new Intl.NumberFormat("en").format;
const rate = (value) => (value == null ? "–" : value && value < 10 ? value.toFixed(1) : count(Math.round(value)));
const percent = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(part && part < whole / 10 ? 1 : 0)} %` : "–");

function time(seconds) {
  if (seconds == null) return "–";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 100) return `${seconds.toFixed(1)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
}

function drawFigures({ running, waiting, totals, blocks }, samples) {
  const last = samples.at(-1);
  const recent = (which) => samples.findLast((sample) => sample.latency[which] != null)?.latency[which];
  const figures = {
    running: count(running),
    waiting: count(waiting),
    "tokens/s": rate(last.speed[0]),
    "to first token": time(recent(0)),
    "between tokens": time(recent(1)),
    "pages in use": blocks ? percent(blocks.used, blocks.total) : "–",
    "cache hits": percent(totals.prefix_cache_hits, totals.prefix_cache_queries),
    "answers": count(totals.requests_completed),
  };
  byId("live-figures").replaceChildren(
    ...Object.entries(figures).map(([name, value]) => el("div", null, el("dt", null, name), el("dd", null, value))));
}

function drawBlocks(blocks) {
  const canvas = byId("pages");
  const cells = [];
  for (let i = 0; i < (blocks?.runs.length ?? 0); i += 2)
    for (let n = 0; n < blocks.runs[i + 1]; n += 1) cells.push(blocks.runs[i]);
  const words = blocks
    ? `${count(blocks.total)} pages of ${blocks.block_size} tokens: ${count(blocks.used)} used, ` +
      `${count(blocks.shared)} of them shared; ${count(blocks.kept)} kept for reuse` +
      (blocks.stride > 1 ? `. Each square stands for ${blocks.stride} pages` : "")
    : "Not known yet.";
  byId("pages-text").textContent = words;
  canvas.setAttribute("aria-label", words);
  drawPages(canvas, cells);
}

function drawCharts(samples) {
  const now = performance.now() / SECOND;
  const span = [60, 120, SPAN].find((each) => each >= now - samples[0].at) ?? SPAN;
  for (const [id, what, words] of [["speed", "speed", rate], ["latency", "latency", time]]) {
    const canvas = byId(id);
    const lines = samples.map((sample) => ({ at: sample.at, values: sample[what] }));
    drawLines(canvas, lines, now, span, words);
    const newest = samples.findLast((sample) => sample[what][0] != null)?.[what] ?? [];
    canvas.setAttribute("aria-label", `The last ${span / 60} min; newest: ${words(newest[0])} and ${words(newest[1])}`);
  }
}

function drawRequests(requests, hidden) {
  const rows = requests.map((request) => el("tr", null,
    ...[
      request.id,
      request.state,
      count(request.prompt_tokens),
      count(request.cached_tokens),
      count(request.output_tokens),
      rate(request.tokens_per_second),
      time(request.first_token_seconds),
      time(request.age_seconds),
    ].map((value, i) => el("td", { class: i > 1 ? "end" : null, title: i ? null : value }, value))));
  const words = !rows.length ? "Nothing to do." : hidden ? `… and ${count(hidden)} more.` : null;
  if (words) rows.push(el("tr", null, el("td", { colspan: 8, class: "small" }, words)));
  byId("live-requests").replaceChildren(...rows);
}
