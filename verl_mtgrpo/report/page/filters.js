'use strict';
// Which rollouts are listed, and in which order.

// Name -> label and options; what they are called, by what the form then says.
const CHOICES = {
  list: ['List', [['groups', 'groups'], ['rollouts', 'single rollouts']]],
  sort: ['Sort by', [
    ['spread', 'largest advantage'], ['high', 'reward, highest first'], ['low', 'reward, lowest first'],
    ['turns', 'most turns'], ['step', 'step'], ['late', 'step, last first'],
  ]],
  kind: ['Rollouts of', [['', 'both'], ['training', 'training'], ['validation', 'validation']]],
  step: ['Step', [['', 'all']]],
  source: ['Data', [['', 'all']]],
  outcome: ['Answer', [['', 'any'], ['right', 'right'], ['wrong', 'wrong']]],
  tool: ['Tool', [['', 'any'], ['yes', 'used'], ['no', 'not used']]],
  hit: ['Answer in a tool\'s result', [['', 'any'], ['yes', 'yes'], ['no', 'no']]],
  errors: ['Tool errors', [['', 'any'], ['yes', 'some'], ['no', 'none']]],
  dropped: ['Dropped', [['', 'any'], ['yes', 'dropped'], ['no', 'not dropped']]],
};

const HOLDS = {
  outcome: (rollout, want) => Boolean(rollout.flags & (want === 'right' ? RIGHT : WRONG)),
  tool: (rollout, want) => Boolean(rollout.flags & USED) === (want === 'yes'),
  hit: (rollout, want) => (want === 'yes' ? Boolean(rollout.flags & HIT) : !(rollout.flags & (HIT | NO_HIT_DEFINED))),
  errors: (rollout, want) => Boolean(rollout.flags & ERRORS) === (want === 'yes'),
  dropped: (rollout, want) => Boolean(rollout.flags & DROPPED) === (want === 'yes'),
};

const ORDERS = {
  spread: (a, b) => b.spread - a.spread,
  high: (a, b) => b.best - a.best,
  low: (a, b) => a.worst - b.worst,
  turns: (a, b) => b.turns - a.turns,
  step: (a, b) => a.group.step - b.group.step,
  late: (a, b) => b.group.step - a.group.step,
};

/** The form; `changed` is called whenever something else is wanted. */
function drawFilters(changed) {
  const form = byId('filters');
  const steps = [...new Set(GROUPS.map((group) => group.step))].sort((a, b) => a - b);
  const more = {
    step: steps.map((step) => [step, step]),
    source: INDEX.sources.map((source, at) => [at, visible(source) || '(not named)']),
  };
  const useless = {
    kind: Object.keys(INDEX.kinds).length < 2, step: steps.length < 2, source: INDEX.sources.length < 2,
    dropped: !GROUPS.some((group) => group.rollouts.some((one) => one.flags & DROPPED)),
    errors: !GROUPS.some((group) => group.rollouts.some((one) => one.flags & ERRORS)),
  };
  form.replaceChildren(
    el('label', { class: 'wide' }, 'Question', el('input', { type: 'search', name: 'text', 'aria-label': 'Question', placeholder: 'words of the question' })),
    ...Object.entries(CHOICES).filter(([name]) => !useless[name]).map(([name, [label, options]]) =>
      el('label', {}, label, el('select', { name, 'aria-label': label }, ...[...options, ...(more[name] || [])].map(([value, text]) =>
        el('option', { value }, text))))),
    el('button', { type: 'button', onclick: () => { form.reset(); changed(); } }, 'Reset'));
  form.addEventListener('input', changed);
  form.addEventListener('submit', (event) => event.preventDefault());
}

/** What the form says, by name; nothing where nothing was chosen. */
function wanted() {
  return Object.fromEntries(new FormData(byId('filters')));
}

/** The listed groups or rollouts: [{group, rollout (or null), matches, spread, best, worst, turns}]. */
function selection() {
  const want = wanted();
  const words = (want.text || '').toLowerCase().split(/\s+/).filter(Boolean);
  const conditions = Object.keys(HOLDS).filter((name) => want[name]);
  const fits = (rollout) => conditions.every((name) => HOLDS[name](rollout, want[name]));
  const found = [];
  for (const group of GROUPS) {
    if (want.kind && group.training !== (want.kind === 'training')) continue;
    if (want.step && group.step !== Number(want.step)) continue;
    if (want.source && group.source !== INDEX.sources[Number(want.source)]) continue;
    if (!words.every((word) => group.text.includes(word))) continue;
    const rollouts = group.rollouts.filter(fits);
    if (!rollouts.length) continue;
    if (want.list === 'rollouts') found.push(...rollouts.map((one) => entryOf(group, [one], one)));
    else found.push(entryOf(group, rollouts, null));
  }
  // The order of the dump breaks ties: sorting is stable.
  return found.sort(ORDERS[want.sort] || ORDERS.spread);
}

function entryOf(group, rollouts, rollout) {
  const most = (value) => rollouts.reduce((found, one) => Math.max(found, value(one)), -Infinity);
  return {
    group, rollout, matches: rollouts.length,
    spread: most((one) => one.spread), best: most((one) => one.total), worst: -most((one) => -one.total),
    turns: most((one) => one.rewards.length),
  };
}
