'use strict';
// The report of one run.

function route() {
  const [part, group, rollout, turn] = showPart();
  if (part !== 'rollouts') return;
  markCurrent();
  const shown = group === undefined && listed.length ? listed[0].group.number : group;
  if (shown !== undefined) showGroup(shown, rollout, turn);
}

drawOverview();
drawMetrics();
drawFilters(refreshList);
refreshList();
addEventListener('hashchange', route);
route();
