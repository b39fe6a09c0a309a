'use strict';
// Two runs side by side: numbers and curves of both, and their rollouts of the same question.

const RUNS = INDEX.runs.map((run, at) => ({
  ...run, at, label: `${'AB'[at]}: ${visible(run.name)}`, groups: at ? GROUPS.slice(INDEX.start) : GROUPS.slice(0, INDEX.start),
}));
const PAIRS = INDEX.pairs.map((numbers, at) => {
  const sides = numbers.map((some) => some.map((number) => GROUPS[number]));
  const [a, b] = sides.map((some) => mean(some.flatMap(kept).map((one) => one.total)));
  return { at, sides, first: sides[0][0], apart: a == null || b == null ? 0 : b - a, paid: [a, b] };
});
const PAIR_OF = new Map(PAIRS.flatMap((pair) => pair.sides.flat().map((group) => [group.number, pair])));
const SIDES = ['left', 'right'];
const runOf = (group) => (group.number < INDEX.start ? 0 : 1);
let chosenPair = null, sidesShown = [null, null];

/** Two charts with the same axes next to each other, or one where each run has a single line. */
function curvesOfBoth(title, both) {
  const share = SHARES.has(title);
  if (both.every((series) => series.length <= 1)) {
    const lines = both.flatMap((series, at) => series.map((one) => ({ ...one, label: RUNS[at].label })));
    return el('div', { class: 'pair' }, lineChart(title, lines, share));
  }
  return el('div', { class: 'pair' }, ...both.map((series, at) => lineChart(`${title}, ${RUNS[at].label}`, series, share, both[1 - at])));
}

function twoColumns(make) {
  return el('div', { class: 'pair' }, ...RUNS.map((run) => el('div', { class: 'column-of' }, make(run))));
}

function drawBoth() {
  const kinds = Object.keys(INDEX.kinds).sort();
  const body = el('div', {});
  const show = (kind) => body.replaceChildren(...partsOf(kind));
  show(kinds[0]);
  byId('overview').replaceChildren(...[factsOfBoth(), kinds.length > 1 && kindChoice(kinds, show), body].filter(Boolean));
  byId('made').textContent = `Made by verl-mtgrpo ${INDEX.madeBy}. Everything is in this file; nothing is fetched.`;
}

function factsOfBoth() {
  const steps = (run) => {
    const all = run.groups.map((group) => group.step);
    return all.length ? `${Math.min(...all)} to ${Math.max(...all)} (${new Set(all).size})` : '–';
  };
  const rows = [
    ['run', (run) => run.label], ['files', (run) => (run.files.length > 2
      ? `${visible(run.files[0])} … (${run.files.length} files)` : run.files.map(visible).join(', '))],
    ['rollouts', (run) => run.groups.reduce((sum, group) => sum + group.rollouts.length, 0).toLocaleString('en')],
    ['groups', (run) => run.groups.length.toLocaleString('en')], ['steps', steps],
    ['estimators', (run) => Object.keys(run.estimators).map(visible).join(', ')],
  ];
  return el('div', {},
    el('div', { class: 'scroll' }, el('table', { class: 'numbers facts-of-both' }, el('tbody', {}, ...rows.map(([name, value]) =>
      el('tr', {}, el('th', { scope: 'row' }, name), ...RUNS.map((run) => el('td', {}, value(run)))))))),
    el('p', {}, PAIRS.length
      ? [el('a', { href: '#rollouts' }, `${count(PAIRS.length, 'question is', 'questions are')} in both runs`), ': look at their rollouts side by side.']
      : 'No question is in both runs, so no rollouts can be put side by side: give both the same data and dump more groups '
        + '(trainer.turn.dump.groups), or compare validations.'));
}

function partsOf(kind) {
  const there = RUNS.filter((run) => run.kinds[kind]);
  if (there.length < 2) return [el('p', { class: 'quiet' }, `Only ${there[0].label} has ${KIND_NAMES[kind]}.`)];
  const of = (run) => run.groups.filter((group) => group.training === (kind === 'training'));
  const titles = [...new Set(RUNS.flatMap((run) => Object.keys(run.kinds[kind].curves)))];
  const most = Math.max(...RUNS.map((run) => new Set(of(run).map((group) => group.step)).size));
  return [
    twoColumns((run) => [el('h2', {}, run.label), method(kind, of(run), run.estimators)]),
    el('h2', {}, 'By turn'), twoColumns((run) => turnTable(run.kinds[kind].turns)),
    el('h2', {}, 'Over the steps'),
    most > 1
      ? el('div', { class: 'pairs' }, ...titles.map((title) => curvesOfBoth(title, RUNS.map((run) => run.kinds[kind].curves[title] || []))))
      : el('p', { class: 'quiet' }, 'One step only: there is nothing to draw a curve through.'),
  ];
}

/** What verl logged: a line for each run. */
function drawMetricsOfBoth() {
  const names = RUNS.flatMap((run) => Object.keys(run.metrics)).sort();
  const points = (run, name) => (Object.hasOwn(run.metrics, name) ? run.metrics[name] : []);
  drawMetrics(Object.fromEntries(names.map((name) => [name, true])),
    (name) => RUNS.map((run) => ({ label: run.label, points: points(run, name) })));
}

const PAIR_ORDERS = new Map([
  ['apart', ['paid most differently', (a, b) => Math.abs(b.apart) - Math.abs(a.apart)]],
  ['better', ['B was paid more', (a, b) => b.apart - a.apart]],
  ['worse', ['A was paid more', (a, b) => a.apart - b.apart]],
  ['order', ['as in the dump', (a, b) => a.at - b.at]],
]);
let pairsListed = [], pairPage = 0;

function drawPairFilters() {
  const again = () => { pairPage = 0; drawPairs(); };
  byId('filters').append(
    el('label', { class: 'wide' }, 'Question', el('input', { type: 'search', name: 'text', oninput: again })),
    el('label', { class: 'wide' }, 'Order', el('select', { name: 'order', onchange: again },
      ...[...PAIR_ORDERS].map(([value, [words]]) => el('option', { value }, words)))));
  byId('filters').addEventListener('submit', (event) => event.preventDefault());
}

function drawPairs() {
  const { text, order } = byId('filters').elements;
  const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
  pairsListed = PAIRS.filter((pair) => words.every((word) => pair.first.text.includes(word))).sort(PAIR_ORDERS.get(order.value)[1]);
  byId('count').textContent = `${pairsListed.length.toLocaleString('en')} of ${count(PAIRS.length, 'question', 'questions')} in both runs`;
  byId('list').replaceChildren(...pairsListed.slice(pairPage * PAGE, (pairPage + 1) * PAGE).map(pairEntry));
  if (!pairsListed.length) byId('list').append(el('li', { class: 'quiet' }, 'There is none.'));
  const pages = Math.ceil(pairsListed.length / PAGE);
  const turn = (by) => () => { pairPage += by; drawPairs(); };
  byId('pager').replaceChildren(...(pages < 2 ? [] : [
    el('button', { type: 'button', disabled: pairPage === 0, onclick: turn(-1) }, 'Previous'),
    el('span', {}, ` ${pairPage + 1} of ${pages} `),
    el('button', { type: 'button', disabled: pairPage === pages - 1, onclick: turn(1) }, 'Next'),
  ]));
  markPair();
}

function pairEntry(pair) {
  const right = (some) => some.flatMap((group) => group.rollouts).filter((one) => one.flags & RIGHT).length;
  const facts = pair.sides.map((some, at) => {
    const all = some.reduce((sum, group) => sum + group.rollouts.length, 0);
    return `${'AB'[at]}: ${right(some)} of ${all} right, paid ${plain(pair.paid[at])}`;
  });
  return el('li', {}, el('a', { href: `#rollouts/${pair.first.number}`, class: 'entry' },
    el('span', { class: 'question', dir: 'auto' }, visible(pair.first.question) || '(no question)'),
    el('span', { class: 'quiet' }, [place(pair.first), ...facts].join(' · '))));
}

function markPair() {
  for (const link of byId('list').querySelectorAll('a')) {
    const pair = PAIR_OF.get(Number(link.getAttribute('href').split('/')[1]));
    if (pair === chosenPair) link.setAttribute('aria-current', 'true');
    else link.removeAttribute('aria-current');
  }
}

/** Show the question of a group on both sides; the other side stays as it is if it shows this question already. */
function showPair(number, rollout, turn) {
  const pair = PAIR_OF.get(number);
  if (!pair) return byId('left').replaceChildren(el('p', { class: 'quiet' }, 'There is no such question in both runs.'));
  const group = GROUPS[number], side = runOf(group);
  if (chosenPair !== pair) {
    chosenPair = pair;
    showSide(1 - side, counterpart(pair.sides[1 - side], group));
  }
  markPair();
  return showSide(side, group, rollout, turn);
}

/** The other run's group of the same step, or its last one. */
function counterpart(groups, group) {
  return groups.find((one) => one.step === group.step) || groups[groups.length - 1];
}

async function showSide(side, group, at, turn) {
  const view = byId(SIDES[side]);
  sidesShown[side] = group;
  let text;
  try {
    text = await details(group.number);
  } catch (error) {
    return view.replaceChildren(el('p', { class: 'warning' }, `This group cannot be shown: ${error.message}.`));
  }
  if (sidesShown[side] !== group) return undefined; // another one was chosen meanwhile
  const inside = view.contains(document.activeElement);
  const chosen = at == null || !group.rollouts[at] ? mostCredited(group) : at;
  view.replaceChildren(el('h2', { class: 'run' }, RUNS[side].label), stepsOf(side, group), groupHead(group, text, chosen),
    matrix(group, text, chosen, turn), rolloutView(group, text, chosen, turn, SIDES[side]));
  if (inside) (view.querySelector('.cell[aria-current]') || view).focus({ preventScroll: true });
  return undefined;
}

/** Links to the steps at which this run has the question. */
function stepsOf(side, group) {
  const groups = chosenPair.sides[side];
  if (groups.length < 2) return el('p', {});
  return el('p', { class: 'quiet steps' }, 'Step ', ...groups.flatMap((one) => [
    one === group ? el('strong', {}, one.step) : el('a', { href: `#rollouts/${one.number}` }, one.step), ' ']));
}

function route() {
  const [part, group, rollout, turn] = showPart();
  if (part !== 'rollouts') return;
  const shown = group === undefined && pairsListed.length ? pairsListed[0].first.number : group;
  if (shown !== undefined) showPair(shown, rollout, turn);
}

drawBoth();
drawMetricsOfBoth();
drawPairFilters();
drawPairs();
addEventListener('hashchange', route);
route();
