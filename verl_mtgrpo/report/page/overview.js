'use strict';
// The first page: what was read, how credit was given, and where it went.

const SHARES = new Set(['Share of rollouts', 'Groups in which all were paid the same']);
const KIND_NAMES = { training: 'training rollouts', validation: 'validation rollouts' };

function drawOverview() {
  const kinds = Object.keys(INDEX.kinds);
  const body = el('div', {});
  const show = (kind) => body.replaceChildren(...kindParts(kind));
  const chosen = kinds.length > 1 ? kindChoice(kinds, show) : null;
  show(kinds[0]);
  byId('overview').replaceChildren(...[facts(), howTo(), chosen, body].filter(Boolean));
  byId('made').textContent = `Made by verl-mtgrpo ${INDEX.madeBy}. Everything is in this file; nothing is fetched.`;
}

function facts() {
  const rollouts = GROUPS.reduce((sum, group) => sum + group.rollouts.length, 0);
  const dropped = GROUPS.reduce((sum, group) => sum + group.rollouts.filter((one) => one.flags & DROPPED).length, 0);
  const steps = new Set(GROUPS.map((group) => group.step));
  const ordered = [...steps].sort((a, b) => a - b);
  const stepText = steps.size > 1 ? `${ordered[0]} to ${ordered[ordered.length - 1]} (${steps.size})` : `${ordered[0]}`;
  const pairs = [
    ['rollouts', rollouts.toLocaleString('en')], ['groups', GROUPS.length.toLocaleString('en')],
    [steps.size > 1 ? 'steps' : 'step', stepText], ['dropped', dropped.toLocaleString('en')],
    ['data', INDEX.sources.filter(Boolean).map(visible).join(', ') || '–'],
  ];
  const files = INDEX.files.length > 4
    ? `${visible(INDEX.files[0])} … ${visible(INDEX.files[INDEX.files.length - 1])} (${INDEX.files.length} files)`
    : INDEX.files.map(visible).join(', ');
  return el('div', {},
    el('dl', { class: 'facts' }, ...pairs.map(([name, value]) => el('div', {}, el('dt', {}, name), el('dd', {}, value)))),
    el('p', { class: 'quiet' }, `Read from ${files}`));
}

function howTo() {
  return el('p', {}, 'Why did this turn get this advantage? ',
    el('a', { href: '#rollouts' }, 'Open a group of rollouts'),
    ', click on a cell of its table, and read the working under the turn.');
}

function kindChoice(kinds, show) {
  const radios = kinds.map((kind, at) => el('label', {},
    el('input', { type: 'radio', name: 'kind', checked: at === 0, onchange: () => show(kind) }), ` ${KIND_NAMES[kind]}`));
  return el('fieldset', { class: 'choice' }, el('legend', {}, 'Numbers of'), ...radios);
}

function kindParts(kind) {
  const { turns, curves, histograms, calibration } = INDEX.kinds[kind];
  const groups = GROUPS.filter((group) => group.training === (kind === 'training'));
  const steps = new Set(groups.map((group) => group.step)).size;
  return [
    method(kind, groups),
    el('h2', {}, 'By turn'), turnTable(turns),
    ...calibration.flatMap(calibrationParts),
    el('h2', {}, 'Over the steps'),
    steps > 1
      ? el('div', { class: 'grid' }, ...Object.entries(curves).map(([title, series]) => lineChart(title, series, SHARES.has(title))))
      : el('p', { class: 'quiet' }, 'One step only: there is nothing to draw a curve through.'),
    el('h2', {}, 'How rewards and advantages are distributed'),
    ...histograms.map((one) => el('div', { class: 'grid' }, ...one.counts.map((counts, turn) =>
      histogram(`${one.title} at turn ${turn + 1}`, counts, one, one.title === 'Advantages')))),
    el('h2', {}, 'Groups whose rollouts were credited most differently'),
    el('ol', { class: 'entries' }, ...[...groups].sort((a, b) => b.spread - a.spread).slice(0, 6).map((group) => groupEntry(group))),
  ];
}

/** Which estimator, what it does, with which settings. */
function method(kind, groups, estimators = INDEX.estimators) {
  const names = [...new Set(groups.map((group) => group.estimator))];
  const perStep = new Map();
  for (const group of groups) perStep.set(group.step, (perStep.get(group.step) || 0) + 1);
  const most = Math.max(...perStep.values());
  const kept = kind === 'training' && el('p', { class: 'quiet' },
    `Up to ${count(most, 'group', 'groups')} a step, each with all of its rollouts. A training dump holds as many as `
    + 'trainer.turn.dump.groups says; of a step with more groups these are a random choice.');
  return el('div', { class: 'card method' }, ...names.flatMap((name) => {
    const { words, settings } = estimators[name];
    const how = kind === 'validation'
      ? `Advantages recomputed as ${name}: nothing is trained on a validation, so none are stored.`
      : `Advantages as trained on, by ${name}.`;
    const knobs = settings.map((some) => Object.entries(some).map(([key, value]) => `${key} = ${value}`).join(', '));
    return [
      el('p', {}, el('strong', {}, visible(how)), ' ', words),
      ...(kind === 'training' && knobs.some(Boolean) ? [el('p', { class: 'quiet' }, visible(knobs.join('; or ')))] : []),
    ];
  }), kept);
}

function turnTable(rows) {
  const head = [['turn'], ['rollouts', 'that have this turn and were not dropped'],
    ['mean reward', 'What was paid at this turn, the outcome included where it was the last one. Under "The working" of a turn, a mean '
      + 'may be of something else: mt_grpo counts a rollout that ended there as 0.'],
    ['mean advantage'], ['mean |advantage|', 'without the sign: how strongly this turn is trained'], ['std of advantage', 'its standard deviation'],
    ['groups without a difference', 'groups in which this turn was paid the same in all rollouts']];
  return el('div', { class: 'scroll' }, el('table', { class: 'numbers' },
    el('thead', {}, el('tr', {}, ...head.map(columnHead))),
    el('tbody', {}, ...rows.map((row) => el('tr', {},
      el('th', { scope: 'row' }, row.turn),
      el('td', {}, row.rollouts.toLocaleString('en')),
      el('td', {}, plain(row.reward, 3)),
      shade(el('td', {}, signed(row.advantage, 3)), row.advantage, SCALE),
      el('td', {}, plain(row.absolute, 3)), el('td', {}, plain(row.std, 3)),
      el('td', {}, row.no_difference == null ? '–' : `${Math.round(100 * row.no_difference)} %`))))));
}

/** Charts of what verl logged, chosen by words of their names. */
function drawMetrics(metrics = INDEX.metrics, seriesOf = (name) => [{ label: visible(name), points: metrics[name] }]) {
  const names = Object.keys(metrics);
  if (!names.length) return;
  document.querySelector('nav [data-part=metrics]').hidden = false;
  const charts = el('div', { class: 'grid' }), said = el('p', { role: 'status', class: 'quiet' });
  const show = (text) => {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    const found = names.filter((name) => !words.length || words.some((word) => name.toLowerCase().includes(word)));
    charts.replaceChildren(...found.slice(0, 30).map((name) => lineChart(visible(name), seriesOf(name))));
    said.textContent = `${found.length} of ${names.length} metrics` + (found.length > 30 ? ', the first 30 are drawn' : '');
  };
  const start = 'turn/ tool/used tool/hit outcome/em critic/score/mean actor/entropy actor/grad_norm';
  const input = el('input', { type: 'search', value: start, oninput: (event) => show(event.target.value) });
  byId('metrics').replaceChildren(el('label', { class: 'wide' }, 'Metrics whose name has one of these words', input), said, charts);
  show(start);
}
