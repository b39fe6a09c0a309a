'use strict';
// A rollout turn by turn: what was written, what tools said, what was paid, and why the advantage is what it is.

const TERM_NAMES = {
  turn: (k) => `paid at turn ${k}`, ended: (k) => `ended with turn ${k}: nothing for going on`, outcome: () => 'paid at the last turn (outcome)',
  turns: () => 'paid before the last turn', return: (k) => `paid from turn ${k} on`, total: () => 'paid in all',
  intermediate: (k) => `paid from turn ${k} on, before the last`, outcomes: (k) => `paid at the last turns behind turn ${k}`,
  totals: (k) => `paid in all by those with turn ${k}`, lambda_return: (k) => `estimated return from turn ${k} on`,
  after: (k) => `expected by the critic behind turn ${k}`,
  worth: (k) => `worth of this output${k ? ` from turn ${k} on` : ''}`, pair: () => 'σ(−D)', own: (k) => `paid itself${k ? ` from turn ${k} on` : ''}`,
};
const BASELINES = {
  alive: (n) => `${n} with this turn`, group: (n) => `${n} rollouts`, others: (n) => `${n} others with it`,
  others_outcome: (n) => `last turns of ${n} others`, turns_of_group: (n) => `${n} turns of the group`, nobody: () => 'no other rollout',
  siblings: (n) => `${n} siblings, itself included`, place: (n) => `${n} turns at this place: no sibling`,
  other_siblings: (n) => `${n} other siblings`, other_places: (n) => `${n} others at this place: no sibling`,
  tree: (n) => `${n} with the same first turn`, parent: () => 'the turn before', prompt: () => 'the prompt', critic: () => 'the critic', before: () => 'what it expected before',
  outputs_of_role: (n) => `${n} outputs of its role`, other_outputs_of_role: (n) => `${n} other outputs of its role`,
  turn_of_role: (n) => `${n} of its role with this turn`, other_turn_of_role: (n) => `${n} others of its role with it`, pair: () => 'the other action', equal: () => 'nothing: both are equal', no_pair: () => 'nothing: the other is missing', no_output: () => 'no other output of its role',
};
// A map: what a dump says is no name of a property.
const ENDS = new Map([
  ['answered', 'ended by answering'], ['max_turns', 'had no turn left'],
  ['response_length', 'cut off: the response was full'], ['outage', 'ended because the search was down'],
  ['no_tokens', 'ended because the server gave no token'], ['failed', 'ended by an error'],
]);

/** `side` keeps the ids of two views on one page apart. */
function rolloutView(group, text, at, turn, side = '') {
  const rollout = group.rollouts[at], said = text.rollouts[at];
  const to = (by) => `#rollouts/${group.number}/${at + by}`;
  return el('article', { 'aria-label': `Rollout ${rollout.name}` },
    el('div', { class: 'bar-top' },
      el('h3', {}, `Rollout ${rollout.name}`),
      el('span', {}, [verdict(rollout), `paid ${plain(rollout.total)}`, ENDS.get(said.end) || visible(said.end)].filter(Boolean).join(' · ')),
      el('span', { class: 'pager' },
        at > 0 && el('a', { href: to(-1) }, '← previous'), ' ',
        at + 1 < group.rollouts.length && el('a', { href: to(1) }, 'next →'))),
    said.dropped != null && el('p', { class: 'warning' }, `Left out of the update: ${visible(said.dropped)}`),
    ...said.turns.map((one, k) => turnCard(one, k, text, k + 1 === turn, text.tree && kinOf(group, text.tree, at, k), side, (parts) => partsView(group, text, parts))),
    note('The outcome', said.outcomeNote),
    !said.turns.length && el('p', { class: 'quiet' }, 'The model wrote nothing that was kept.'),
    components(said.components));
}

function turnCard(one, k, text, current, kin, side, told) {
  const dense = one.dense.reduce((total, [, value]) => total + value, 0);
  const kl = one.credited != null && Math.abs(one.credited - one.reward - dense) > 1e-5 * Math.max(1, Math.abs(one.credited));
  return el('section', { class: current ? 'turn card current' : 'turn card', id: `${side}turn${k + 1}`, 'aria-label': `Turn ${k + 1}` },
    el('div', { class: 'turn-head' },
      el('h4', {}, `Turn ${k + 1}`),
      el('span', {}, `paid ${plain(one.reward)}`),
      ...one.dense.map(([name, value]) => el('span', {}, `${visible(name)} ${signed(value, 3)}`)),
      (kl || one.dense.length > 0) && el('span', {}, `credited ${plain(one.credited, 3)}${kl ? ' (with the KL penalty)' : ''}`),
      one.value != null && el('span', {}, `critic ${plain(one.value)}`),
      shade(el('span', { class: 'chip' }, `advantage ${signed(one.advantage)}`), one.advantage, SCALE)),
    why(one, current, told),
    note('The reward function', one.note),
    kin,
    el('p', { class: 'label' }, 'The model wrote'), verbatim(one.text),
    ...one.calls.map((call) => callView(call, text.documents)));
}

/** What the reward function, or a judge, says of a reward. */
function note(about, words) {
  return words ? el('p', { class: 'note' }, el('strong', {}, `${about}: `), visible(words)) : null;
}

/** The sentence, and under it the working in numbers. */
function why(one, open, told) {
  const sentence = el('p', { class: one.addsUp === false && 'warning' },
    el('strong', { title: 'a ± b: a mean, and the standard deviation that the difference from it is divided by' }, 'Why?'), ' ', visible(one.words));
  if (!one.terms.length) return el('div', { class: 'why' }, sentence);
  const head = [['what'], ['(value'], ['− mean)', 'of what the last column names'], ['÷ std', 'their standard deviation; –: not divided'],
    ['× weight', 'what the estimator\'s settings give this term'], ['= adds', 'its part of the advantage'], ['compared with']];
  // The end of a rollout is worth a row only if others were paid for going on.
  const rows = one.terms.filter(([kind, , , , , , adds]) => kind !== 'ended' || adds).map(([kind, turn, value, average, std, weight, adds, number, baseline, ended, leaves, parts]) => el('tr', {},
    el('th', { scope: 'row' }, TERM_NAMES[kind](turn), leaves > 1 && `, over ${leaves} rollouts`, ...told(parts)),
    el('td', {}, plain(value, 3)), el('td', {}, plain(average, 3)), el('td', {}, std == null ? '–' : plain(std, 3)),
    el('td', {}, compact(weight)), shade(el('td', { class: 'adds' }, signed(adds, 3)), adds, SCALE),
    el('td', { class: 'words' }, BASELINES[baseline](number), ended > 0 && `, ${ended} of them ended there: 0`)));
  const sum = one.terms.reduce((total, term) => total + term[6], 0);
  const foot = el('tr', {}, el('th', { scope: 'row', colspan: 5 }, one.addsUp ? 'sum' : `sum (stored: ${signed(one.advantage, 3)})`),
    el('td', { class: 'adds sum' }, signed(sum, 3)), el('td', {}));
  return el('div', { class: 'why' }, sentence,
    el('details', { open },
      el('summary', {}, 'The working'),
      el('div', { class: 'scroll' }, el('table', { class: 'numbers working' },
        el('thead', {}, el('tr', {}, ...head.map(columnHead))),
        el('tbody', {}, ...rows), el('tfoot', {}, foot)))));
}

function callView(call, documents) {
  const state = [
    call.ok ? 'answered' : `failed: ${visible(call.kind || 'error')}`,
    call.ok && call.kind && visible(call.kind),
    call.ok && !call.seen && 'the model never saw the result: it did not fit',
    call.changed != null && (call.changed ? 'changed something' : 'changed nothing'),
    call.repeat && 'asked before in this rollout',
    call.faults.length > 0 && `tries that failed: ${call.faults.map(visible).join(', ')}`,
    call.seconds > 0 && `${compact(call.seconds)} s`,
    call.reward !== 0 && `worth ${plain(call.reward)} to the tool`,
  ].filter(Boolean).join(' · ');
  return el('div', { class: call.ok ? 'call' : 'call failed' },
    el('p', { class: 'label' }, 'Tool call ', el('code', {}, visible(call.name)), ` ${state}`),
    verbatim(call.arguments, 'text arguments'),
    call.error && el('p', {}, visible(call.error)),
    call.documents.length > 0 && el('ol', { class: 'documents' }, ...call.documents.map((number) => documentView(documents[number]))),
    call.result !== '' && el('details', { open: call.documents.length === 0 },
      el('summary', {}, call.seen ? 'What the model saw' : 'What the model did not see'), verbatim(call.result)));
}

function documentView([id, title, body, score]) {
  return el('li', {},
    el('details', {},
      el('summary', { dir: 'auto' }, visible(title) || '(no title)', el('span', { class: 'quiet' }, ` score ${compact(score)} · ${visible(id)}`)),
      verbatim(body)));
}

function components(named) {
  const names = Object.keys(named);
  if (!names.length) return null;
  return el('details', { class: 'card components' }, el('summary', {}, 'Reward components and measurements'),
    el('dl', {}, ...names.map((name) => el('div', {}, el('dt', {}, visible(name)), el('dd', {}, compact(named[name]))))));
}
