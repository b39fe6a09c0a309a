'use strict';
// A tree: the turns that rollouts of a prompt share are drawn once, across the rows of the rollouts that have them.

const KIN_SHOWN = 12;

/** Rows of rollouts, those that share turns next to each other; a shared turn is one cell across them. */
function treeRows(group, tree, chosen, turn) {
  const mine = new Set(tree.nodes[chosen]);
  return tree.order.map((at, row) => {
    const rollout = group.rollouts[at], cells = [];
    for (let k = 0; k < group.turns; k += 1) {
      const node = tree.nodes[at][k];
      if (node === undefined) cells.push(cell(group, rollout, k, false));
      else if (row > 0 && tree.nodes[tree.order[row - 1]][k] === node) continue; // the cell above reaches down to here
      else cells.push(nodeCell(group, tree, row, k, chosen, mine.has(node) && k + 1 === turn, mine.has(node)));
    }
    return matrixRow(group, rollout, at === chosen, cells);
  });
}

function nodeCell(group, tree, row, k, chosen, current, onPath) {
  const node = tree.nodes[tree.order[row]][k];
  let end = row + 1;
  while (end < tree.order.length && tree.nodes[tree.order[end]][k] === node) end += 1;
  const members = tree.order.slice(row, end).map((at) => group.rollouts[at]);
  const one = members.find((rollout) => rollout.at === chosen) || members[0];
  const td = members.length === 1 ? cell(group, one, k, current) : sharedCell(group, one, members, k, current);
  td.classList.add('node');
  if (onPath) td.classList.add('mine');
  return td;
}

/** A turn of several rollouts. Each may train it with an advantage of its own: the mean, and below it from where to where. */
function sharedCell(group, one, members, k, current) {
  const values = members.map((rollout) => rollout.advantages[k]);
  const average = mean(values), low = Math.min(...values), high = Math.max(...values);
  const range = high - low < 0.005 ? '' : `${signed(low)} to ${signed(high)}`;
  const names = members.map((rollout) => rollout.name).join(', ');
  const link = el('a', {
    href: `#rollouts/${group.number}/${one.at}/${k + 1}`, class: 'cell', 'aria-current': current ? 'true' : null,
    'aria-label': `rollouts ${names}, turn ${k + 1}: advantage ${signed(average)}${range && ` on average, ${range}`}, paid ${plain(one.rewards[k])}`,
  }, el('b', {}, signed(average)), range && el('span', { class: 'range' }, range), el('span', {}, `${plain(one.rewards[k])} · in ${members.length}`));
  return el('td', { rowspan: members.length, class: 'shared' }, shade(link, average, SCALE));
}

/** The mean of what was paid at a turn, over the distinct turns of the rollouts that were not dropped. */
function meanOfNodes(group, tree, k) {
  const paid = new Map();
  for (const one of kept(group)) if (one.rewards.length > k) paid.set(tree.nodes[one.at][k], one.rewards[k]);
  return el('td', { title: 'what was paid at this turn, each shared turn counted once' },
    plain(mean([...paid.values()])), el('span', { class: 'quiet' }, ` of ${paid.size}`));
}

/** What else was sampled in the state of a turn, and who shares the turn. */
function kinOf(group, tree, at, k) {
  const node = tree.nodes[at][k], shares = [], siblings = new Map();
  for (const one of group.rollouts) {
    const other = tree.nodes[one.at][k];
    if (other === node) shares.push(one);
    else if (other !== undefined && tree.parents[other] === tree.parents[node] && !siblings.has(other)) siblings.set(other, one);
  }
  const others = [...siblings.values()];
  const link = (one) => el('a', { href: `#rollouts/${group.number}/${one.at}/${k + 1}` }, `rollout ${one.name}`);
  const list = (some, each) => [...some.slice(0, KIN_SHOWN).flatMap((one, n) => [n > 0 && ', ', ...each(one)]),
    some.length > KIN_SHOWN && ` and ${some.length - KIN_SHOWN} more`];
  const shared = shares.filter((one) => one.at !== at);
  if (!shared.length && !others.length) return null;
  return el('p', { class: 'kin quiet' },
    ...(shared.length ? ['The same turn: ', ...list(shared, (one) => [link(one)]), '. '] : []),
    ...(others.length ? ['Sampled in the same state: ', ...list(others, (one) =>
      [link(one), ` (paid ${plain(one.rewards[k])}, advantage ${signed(one.advantages[k])})`]), '.'] : ['No other turn was sampled in its state.']));
}
