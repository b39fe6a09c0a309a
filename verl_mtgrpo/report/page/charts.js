'use strict';
// Curves and histograms as drawings. Series differ by colour, dashes and the shape of their points.

const WIDTH = 340, HEIGHT = 190, LEFT = 46, RIGHT_EDGE = 10, TOP = 10, BOTTOM = 26;
const DASHES = ['', '6 3', '2 3', '8 3 2 3', '1 4', '10 4'];

/** Round numbers between two ends, about as many as asked for. */
function ticks(low, high, about) {
  const raw = (high - low) / about || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= raw * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) found.push(at);
  return found;
}

/** A line chart of [{label, points: [[step, value]]}]; with the axes of `alike` too, so that two charts can be compared. */
function lineChart(title, series, share, alike = []) {
  const points = series.flatMap((one) => one.points).filter(([, value]) => value != null);
  const figure = el('figure', { class: 'chart card' }, el('figcaption', {}, title));
  if (!points.length) return figure;
  const spanned = [...points, ...alike.flatMap((one) => one.points).filter(([, value]) => value != null)];
  const steps = spanned.map(([step]) => step), values = spanned.map(([, value]) => value);
  const x = scaleOf(Math.min(...steps), Math.max(...steps), LEFT, WIDTH - RIGHT_EDGE);
  const [low, high] = share ? [0, 1] : padded(Math.min(...values), Math.max(...values));
  const y = scaleOf(low, high, HEIGHT - BOTTOM, TOP);
  const drawing = frame(title, series, x, y);
  series.forEach((one, number) => drawing.append(...lineOf(one, number, x, y)));
  figure.append(drawing, seriesLegend(series));
  return figure;
}

function padded(low, high) {
  if (low === high) return [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
  return [low - 0.06 * (high - low), high + 0.06 * (high - low)];
}

function scaleOf(low, high, start, end) {
  const scale = (value) => (high === low ? (start + end) / 2 : start + ((value - low) / (high - low)) * (end - start));
  return Object.assign(scale, { low, high });
}

function frame(title, series, x, y) {
  const said = series.map((one) => {
    const last = one.points[one.points.length - 1];
    return last ? `${one.label}: ${compact(one.points[0][1])} to ${compact(last[1])}` : one.label;
  });
  const drawing = svg('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'img', 'aria-label': `${title}. ${said.join('; ')}` });
  for (const value of ticks(y.low, y.high, 4)) {
    drawing.append(
      svg('line', { class: value === 0 ? 'axis' : 'grid', x1: LEFT, x2: WIDTH - RIGHT_EDGE, y1: y(value), y2: y(value) }),
      svg('text', { x: LEFT - 6, y: y(value) + 4, 'text-anchor': 'end' }, compact(Number(value.toPrecision(6)))));
  }
  const steps = x.low === x.high ? [x.low] : ticks(x.low, x.high, 5).filter((step) => Number.isInteger(step));
  for (const step of steps) drawing.append(svg('text', { x: x(step), y: HEIGHT - 8, 'text-anchor': 'middle' }, step));
  return drawing;
}

function lineOf(one, number, x, y) {
  const points = one.points.filter(([, value]) => value != null);
  const name = `series s${number % 6}`;
  const path = points.map(([step, value], at) => `${at ? 'L' : 'M'}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join('');
  const drawn = [svg('path', { class: name, d: path, 'stroke-dasharray': DASHES[number % 6] })];
  if (points.length <= 80) {
    drawn.push(...points.map(([step, value]) => {
      const point = mark(number, x(step), y(value), points.length > 30 ? 1.6 : 3);
      point.append(svg('title', {}, `${one.label}, step ${step}: ${compact(value)}`));
      return point;
    }));
  }
  return drawn;
}

/** A point of a series: circle, square, triangle, diamond, cross, bar. */
function mark(number, x, y, r) {
  const name = `mark s${number % 6}`;
  const shapes = [
    () => svg('circle', { class: name, cx: x, cy: y, r }),
    () => svg('rect', { class: name, x: x - r, y: y - r, width: 2 * r, height: 2 * r }),
    () => svg('path', { class: name, d: `M${x} ${y - r}L${x + r} ${y + r}L${x - r} ${y + r}Z` }),
    () => svg('path', { class: name, d: `M${x} ${y - r}L${x + r} ${y}L${x} ${y + r}L${x - r} ${y}Z` }),
    () => svg('path', { class: name, d: `M${x - r} ${y - r}L${x + r} ${y + r}M${x - r} ${y + r}L${x + r} ${y - r}` }),
    () => svg('rect', { class: name, x: x - r, y: y - r / 2, width: 2 * r, height: r }),
  ];
  return shapes[number % 6]();
}

function seriesLegend(series) {
  if (series.length < 2) return el('p', { class: 'keys' });
  return el('p', { class: 'keys' }, ...series.map((one, number) => el('span', { class: 'key' },
    svg('svg', { viewBox: '0 0 26 10', width: 26, height: 10, 'aria-hidden': 'true' },
      svg('path', { class: `series s${number % 6}`, d: 'M0 5L26 5', 'stroke-dasharray': DASHES[number % 6] }),
      mark(number, 13, 5, 3)),
    ' ', one.label)));
}

/** One histogram of {low, high}: bars of a turn index; those of advantages by sign. */
function histogram(label, counts, range, diverging) {
  const height = 110, bottom = 92, top = 6, left = 8, right = WIDTH - 8;
  const most = Math.max(...counts, 1), bin = (right - left) / counts.length;
  const total = counts.reduce((sum, one) => sum + one, 0);
  const drawing = svg('svg', {
    viewBox: `0 0 ${WIDTH} ${height}`, role: 'img',
    'aria-label': `${label}: ${total} values from ${compact(range.low)} to ${compact(range.high)}`,
  });
  counts.forEach((number, at) => {
    const middle = range.low + ((at + 0.5) / counts.length) * (range.high - range.low);
    const tall = number ? Math.max((number / most) * (bottom - top), 1) : 0;
    const sign = !diverging || Math.abs(at - (counts.length - 1) / 2) < 0.5 ? 'zero' : middle > 0 ? 'above' : 'below';
    drawing.append(svg('rect', { class: `bar ${sign}`, x: left + at * bin + 0.5, y: bottom - tall, width: bin - 1, height: tall },
      svg('title', {}, `about ${compact(middle)}: ${number}`)));
  });
  drawing.append(svg('line', { class: 'axis', x1: left, x2: right, y1: bottom, y2: bottom }));
  for (const [share, anchor] of [[0, 'start'], [0.5, 'middle'], [1, 'end']]) {
    const value = range.low + share * (range.high - range.low);
    drawing.append(svg('text', { x: left + share * (right - left), y: height - 5, 'text-anchor': anchor },
      compact(Number(value.toFixed(6)))));
  }
  return el('figure', { class: 'chart card' }, el('figcaption', {}, `${label} (${total.toLocaleString('en')})`), drawing);
}
