// Drawings to start from.

const arc = (x, y, r, from, to, ry = r) =>
  Array.from({length: 25}, (_, i) => {
    const angle = ((from + ((to - from) * i) / 24) * Math.PI) / 180;
    return [x + r * Math.cos(angle), y + ry * Math.sin(angle)];
  });

const spiral = Array.from({length: 60}, (_, i) => {
  const angle = i / 4.5;
  return [0.5 + (0.02 + 0.026 * angle) * Math.cos(angle), 0.5 + (0.02 + 0.026 * angle) * Math.sin(angle)];
});

const star = Array.from({length: 6}, (_, i) => {
  const angle = ((i * 144 - 90) * Math.PI) / 180;
  return [0.5 + 0.36 * Math.cos(angle), 0.52 + 0.36 * Math.sin(angle)];
});

/** Each class's strokes, of points from 0 to 1 across the pad. */
export const SAMPLES = {
  shapes: [
    [[[0.2, 0.82], [0.2, 0.45], [0.5, 0.15], [0.8, 0.45], [0.8, 0.82], [0.2, 0.82]],
      [[0.42, 0.82], [0.42, 0.58], [0.58, 0.58], [0.58, 0.82]]],
    [star],
    [spiral],
  ],
  letters: [
    [[[0.25, 0.15], [0.25, 0.85]], [[0.25, 0.5], [0.75, 0.15]], [[0.25, 0.5], [0.75, 0.85]]],
    [arc(0.5, 0.38, 0.22, 0, 360), [[0.5, 0.6], [0.5, 0.88]], [[0.32, 0.74], [0.68, 0.74]]],
    [[[0.2, 0.25], [0.8, 0.25]], [[0.35, 0.25], [0.35, 0.8]],
      [[0.65, 0.25], [0.65, 0.7], ...arc(0.73, 0.7, 0.08, 180, 60)]],
    [[...arc(0.48, 0.3, 0.2, 200, 450, 0.17), ...arc(0.5, 0.66, 0.24, -90, 150, 0.19)]],
    [[[0.2, 0.2], [0.5, 0.52], [0.8, 0.2]], [[0.5, 0.52], [0.5, 0.85]]],
  ],
};

/** The same drawing by a hurried hand: slanted, narrower, with a wobble that ``seed`` varies. */
export function again(strokes, seed = 1) {
  const slant = 0.12 * Math.sin(2.1 * seed), turn = 0.14 * Math.cos(1.7 * seed);
  const wave = (t) => 0.018 * Math.sin(9 * t + 2.4 * seed);
  return strokes.map((stroke) =>
    stroke.map(([x, y]) => {
      const u = 0.88 * (x - 0.5) + slant * (0.5 - y), v = 0.94 * (y - 0.5);
      return [
        0.5 + u * Math.cos(turn) - v * Math.sin(turn) + wave(y),
        0.5 + u * Math.sin(turn) + v * Math.cos(turn) + wave(x + 0.3),
      ];
    }),
  );
}
