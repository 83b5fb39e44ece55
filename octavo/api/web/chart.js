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

const LONGEST_GAP = 15; // seconds without a value that a line goes on over

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
    if (value == null) continue;
    if (before == null || at - before > LONGEST_GAP) pen.moveTo(x(at) - 1, y(value));
    pen.lineTo(x(at), y(value));
    before = at;
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
const KEPT = 1;
const SHARED = 3;

const SIDE = 16; // of the largest squares, and the height that is enough for all
const HEIGHT = 240;

/** Squares for pages. cells: a state each, 0 free, 1 kept, 2 used, 3 shared. */
export function drawPages(canvas, cells) {
  const width = canvas.clientWidth || 300;
  const gutter = 6;
  let gatherings = 0; // beside each other
  let size;
  do {
    gatherings += 1;
    size = Math.floor((width - (gatherings - 1) * gutter) / (gatherings * 8));
  } while (size > 4 && (size > SIDE || Math.ceil(cells.length / (gatherings * 8)) * size > HEIGHT));
  const columns = gatherings * 8;
  const [pen] = prepare(canvas, Math.max(1, Math.ceil(cells.length / columns)) * size);
  const [used, shared, kept, free] = legend(canvas);
  const inner = size - (size > 7 ? 3 : 1);
  cells.forEach((state, i) => {
    const x = (i % columns) * size + Math.floor((i % columns) / 8) * gutter;
    const y = Math.floor(i / columns) * size;
    if (state !== FREE) {
      pen.fillStyle = state === KEPT ? kept : state === SHARED ? shared : used;
      pen.fillRect(x, y, inner, inner);
    }
    if (state === FREE || state === KEPT) {
      pen.strokeStyle = free;
      pen.strokeRect(x + 0.5, y + 0.5, inner - 1, inner - 1);
    }
    if (state === SHARED && size > 6) { // a folded corner: not by colour alone
      pen.fillStyle = colour(canvas, "background-color");
      pen.beginPath();
      pen.moveTo(x + inner / 2, y);
      pen.lineTo(x + inner, y);
      pen.lineTo(x + inner, y + inner / 2);
      pen.fill();
    }
  });
}
