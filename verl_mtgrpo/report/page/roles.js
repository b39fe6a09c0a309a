'use strict';
// Roles: the outputs that one rollout of several roles consists of, side by side.

const OUTPUTS_SHOWN = 4;

/** The outputs that belong to the chosen one: what it read, what read it, or all sides of its conversation. */
function belongingTo(roles, chosen) {
  if (roles[chosen].talk !== null) return roles.flatMap((one, at) => (one.talk === roles[chosen].talk ? [at] : []));
  const found = new Set([chosen]);
  const follow = (next) => {
    for (let left = [chosen]; left.length;) {
      left = left.flatMap(next).filter((at) => !found.has(at));
      for (const at of left) found.add(at);
    }
  };
  follow((at) => roles[at].reads);
  follow((at) => roles.flatMap((one, other) => (one.reads.includes(at) ? [other] : [])));
  return [...found].sort((a, b) => a - b);
}

function roleName(group, roles, at) {
  return `${visible(roles[at].role)} ${group.rollouts[at].name}`;
}

/** A column for each role, in the order of speaking. */
function rolesView(group, text, chosen) {
  const { roles } = text, columns = new Map();
  for (const at of belongingTo(roles, chosen)) columns.set(roles[at].role, [...(columns.get(roles[at].role) || []), at]);
  if (columns.size < 2) return null;
  const talk = roles[chosen].talk !== null;
  return el('section', { class: 'roles', 'aria-label': talk ? 'The conversation' : 'What was read, and what read it' },
    ...[...columns.values()].map((members) => el('div', {},
      ...members.slice(0, OUTPUTS_SHOWN).map((at) => outputCard(group, text, at, at === chosen)),
      members.length > OUTPUTS_SHOWN && el('p', { class: 'quiet' }, `and ${members.length - OUTPUTS_SHOWN} more`))));
}

function outputCard(group, text, at, current) {
  const rollout = group.rollouts[at], said = text.rollouts[at], role = text.roles[at];
  const turns = role.talk !== null ? said.turns : said.turns.slice(-1);
  const value = mean(rollout.advantages);
  return el('div', { class: current ? 'card current' : 'card' },
    el('p', {}, el('a', { href: `#rollouts/${group.number}/${at}`, 'aria-current': current ? 'true' : null }, roleName(group, text.roles, at)),
      ` paid ${plain(rollout.total)} `,
      role.learnt && value !== null && shade(el('span', { class: 'chip' }, `advantage ${signed(value)}`), value, SCALE)),
    !role.learnt && el('p', { class: 'quiet' }, 'Nothing is learnt from it.'),
    role.reads.length > 0 && el('p', { class: 'quiet' }, 'read ', ...role.reads.slice(0, OUTPUTS_SHOWN).flatMap((other, n) =>
      [n > 0 && ', ', roleName(group, text.roles, other)])),
    ...turns.map((one) => verbatim(one.text)));
}

/** What the worth of an output, or the margin of a pair, is the sum of, a line each; with links to who read it. */
function partsView(group, text, parts) {
  const from = (readers) => readers.slice(0, OUTPUTS_SHOWN).flatMap(([at, worth], n) => [n > 0 && ', ',
    el('a', { href: `#rollouts/${group.number}/${at}` }, roleName(group, text.roles, at)), ` ${plain(worth, 3)}`]);
  return parts.map(([kind, value, weight, reduce, readers]) => el('span', { class: 'part' },
    weight !== 1 && `${compact(weight)} · `, plain(value, 3),
    kind === 'expert_ratio' && ' log ratio of the expert’s', kind === 'own_ratio' && ' log ratio of the policy’s own',
    kind === 'own' && ' paid itself', kind === 'outcome' && ' paid at the last turn (outcome)',
    ...(kind === 'back' ? [' back from what read it: ', readers.length > 1 && `${reduce} of `, ...from(readers),
      readers.length > OUTPUTS_SHOWN && ` and ${readers.length - OUTPUTS_SHOWN} more`] : [])));
}
