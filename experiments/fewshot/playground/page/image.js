// What the models see of a drawing.

export const SIZE = 28;

/** The length below which a drawing isn't made larger, as a part of the pad: a dot stays a dot. */
const SMALLEST = 0.08;

/**
 * A drawing as the training images are: centred, its longer side and its line of one size.
 *
 * @param {number[][][]} strokes  lines of points [x, y], each from 0 to 1 across the pad
 * @param {{side: number, width: number}} form  the longer side of the ink and the width of the line,
 *   in pixels of the image
 * @returns {number[]} SIZE × SIZE numbers, row by row, ink = 255 on 0
 */
export function toImage(strokes, {side, width}) {
  const points = strokes.flat();
  if (!points.length) return new Array(SIZE * SIZE).fill(0);
  const [left, right] = range(points.map(([x]) => x));
  const [top, bottom] = range(points.map(([, y]) => y));
  const scale = (side - width) / Math.max(right - left, bottom - top, SMALLEST);
  const place = ([x, y]) => [
    (x - (left + right) / 2) * scale + SIZE / 2,
    (y - (top + bottom) / 2) * scale + SIZE / 2,
  ];
  const distance = new Float64Array(SIZE * SIZE).fill(Infinity);
  for (const stroke of strokes) {
    const line = stroke.map(place);
    for (let i = 0; i < line.length; i++) nearer(distance, line[Math.max(i - 1, 0)], line[i], width);
  }
  // A pixel is as dark as the line covers it.
  return Array.from(distance, (d) => Math.round(255 * Math.min(1, Math.max(0, (width + 1) / 2 - d))));
}

/** Lowers the distances of the pixels around a line from a to b to their distances from it. */
function nearer(distance, [ax, ay], [bx, by], width) {
  const reach = (width + 1) / 2;
  const within = (value) => Math.min(SIZE - 1, Math.max(0, value));
  const [x0, x1] = range([ax, bx]), [y0, y1] = range([ay, by]);
  const dx = bx - ax, dy = by - ay, length = dx * dx + dy * dy;
  for (let y = within(Math.floor(y0 - reach)); y <= within(Math.ceil(y1 + reach)); y++) {
    for (let x = within(Math.floor(x0 - reach)); x <= within(Math.ceil(x1 + reach)); x++) {
      const px = x + 0.5 - ax, py = y + 0.5 - ay;
      const t = length ? Math.min(1, Math.max(0, (px * dx + py * dy) / length)) : 0;
      const d = Math.hypot(px - t * dx, py - t * dy);
      if (d < distance[y * SIZE + x]) distance[y * SIZE + x] = d;
    }
  }
}

function range(values) {
  return values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
}
