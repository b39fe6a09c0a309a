'use strict';
// Turn rewards against the outcome: the findings in words, and the tables behind them.

function calibrationParts(calibration) {
  const bare = (row) => row.map(visible);
  return [
    el('h2', {}, 'Do turn rewards and the outcome agree?'),
    el('p', { class: 'quiet' }, visible(calibration.about)),
    el('ul', { class: 'advice' }, ...calibration.advice.map((sentence) => el('li', {}, visible(sentence)))),
    ...calibration.tables.map(({ head, rows, titles }) => calibrationTable(head.map((name, at) => [visible(name), titles[at]]), rows.map(bare))),
    ...calibration.undefined.map((line) => el('p', { class: 'quiet' }, visible(line))),
  ];
}

function calibrationTable(head, rows) {
  return el('div', { class: 'scroll' }, el('table', { class: 'numbers' },
    el('thead', {}, el('tr', {}, ...head.map(columnHead))),
    el('tbody', {}, ...rows.map(([name, ...cells]) => el('tr', {},
      el('th', { scope: 'row' }, name), ...cells.map((cell) => el('td', {}, cell)))))));
}
