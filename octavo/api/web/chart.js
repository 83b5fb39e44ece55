// Two pictures: lines over the last minutes, and the pages of a cache as squares in gatherings of eight.

/** Prepares a canvas for the screen's resolution; its drawing context, width and height in CSS pixels. */
function prepare(canvas, height) {
  const width = canvas.clientWidth || 300;
  const scale = devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  pen.clearRect(0, 0, width, height);
  return [pen, width, height];
}

const colour = (element, property = "color") => getComputedStyle(element).getPropertyValue(property);

/** The colours that a canvas's legend has, in its order. */
const legend = (canvas) =>
  [...canvas.parentElement.querySelectorAll(".legend i")].map((sample) => colour(sample, "background-color"));

/**
 * Lines over time. samples: [{at, values: [number or null, …]}] in seconds, oldest first; now: the right edge;
 * span: seconds from left to right; format(value): in words.
 */
export function drawLines(canvas, samples, now, span, format) {
  const [pen, width, height] = prepare(canvas, 150);
  const shown = samples.filter((sample) => sample.at >= now - span);
  const top = niceTop(Math.max(0, ...shown.flatMap((sample) => sample.values.map((value) => value ?? 0))));
  const left = 52;
  const floor = height - 20;
  const x = (at) => left + ((at - now + span) / span) * (width - left - 4);
  const y = (value) => floor - (value / top) * (floor - 8);
  pen.font = `11px ${colour(canvas, "font-family")}`;
  pen.lineWidth = 1;
  for (const part of [0, 0.5, 1]) {
    const level = Math.round(y(top * part)) + 0.5;
    pen.strokeStyle = colour(canvas, "border-top-color");
    pen.beginPath();
    pen.moveTo(left, level);
    pen.lineTo(width, level);
    pen.stroke();
    pen.fillStyle = colour(canvas);
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    pen.fillText(format(top * part), left - 6, level);
  }
  pen.textBaseline = "alphabetic";
  pen.textAlign = "left";
  pen.fillText(`${span / 60} min ago`, left, height - 4);
  pen.textAlign = "right";
  pen.fillText("now", width - 4, height - 4);
  legend(canvas).forEach((stroke, line) => drawLine(pen, shown, line, stroke, x, y));
}

function drawLine(pen, samples, line, stroke, x, y) {
  pen.strokeStyle = stroke;
  pen.lineWidth = 2;
  pen.lineJoin = "round";
  pen.setLineDash(line ? [4, 3] : []); // told apart without colour too
  pen.beginPath();
  let before = null;
  for (const { at, values } of samples) {
    const value = values[line];
    if (value == null) before = null;
    else if (before == null) pen.moveTo(x(at) - 1, y(value)), pen.lineTo(x(at), y(value)), (before = at);
    else pen.lineTo(x(at), y(value)), (before = at);
  }
  pen.stroke();
  pen.setLineDash([]);
}

/** The next of 1, 2, 5, 10, 20, … */
function niceTop(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((step) => value <= step * power) * power;
}

const FREE = 0;
const CACHED = 1;
const SHARED = 3;

/** Squares for pages. cells: a state each, 0 free, 1 kept, 2 used, 3 shared. */
export function drawPages(canvas, cells) {
  const width = canvas.clientWidth || 300;
  const gutter = 5;
  let size = 15;
  let columns;
  let rows;
  for (;; size -= 1) { // as large as fits a calm height
    const gathering = size * 8 + gutter;
    columns = Math.max(1, Math.floor((width + gutter) / gathering)) * 8;
    rows = Math.ceil(cells.length / columns);
    if (size <= 5 || rows * size <= 260) break;
  }
  const [pen] = prepare(canvas, Math.max(rows, 1) * size + 2);
  const [used, shared, cached, free] = legend(canvas);
  const inner = size - (size > 7 ? 3 : 1);
  cells.forEach((state, i) => {
    const column = i % columns;
    const x = column * size + Math.floor(column / 8) * gutter + 0.5;
    const y = Math.floor(i / columns) * size + 0.5;
    if (state === FREE) {
      pen.strokeStyle = free;
      pen.strokeRect(x, y, inner - 1, inner - 1);
      return;
    }
    pen.fillStyle = state === CACHED ? cached : state === SHARED ? shared : used;
    pen.fillRect(x - 0.5, y - 0.5, inner, inner);
    if (state === SHARED && size > 6) { // a folded corner: not by colour alone
      pen.fillStyle = colour(canvas, "background-color");
      pen.beginPath();
      pen.moveTo(x - 0.5 + inner / 2, y - 0.5);
      pen.lineTo(x - 0.5 + inner, y - 0.5);
      pen.lineTo(x - 0.5 + inner, y - 0.5 + inner / 2);
      pen.fill();
    }
  });
}
