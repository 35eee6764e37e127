// The page: one user's list, which changes as the user chooses.

import {Device, Graphs} from './device.mjs';

const TOP = 12, RECENT = 6;
const part = name => document.getElementById(name);

function element(kind, text, name = '') {
  const made = document.createElement(kind);
  made.textContent = text;
  if (name) made.className = name;
  return made;
}

const title = (graphs, number) => graphs.names[number] ?? `item ${graphs.ids[number]}`;

async function show(device, before) {
  const graphs = device.graphs;
  const started = performance.now();
  const list = await device.recommend(graphs.ids.length);
  const spent = performance.now() - started;
  const place = new Map((before ?? []).map(each => [each.number, each.rank]));
  part('list').replaceChildren(...list.slice(0, TOP).map(each => {
    const row = element('li', '');
    const button = element('button', title(graphs, each.number), 'item');
    button.dataset.number = each.number;
    button.addEventListener('click', () => choose(device, each.number, list));
    row.append(button);
    const moved = place.has(each.number) ? place.get(each.number) - each.rank : 0;
    if (moved) row.append(element('span', `${moved > 0 ? '▲' : '▼'} ${Math.abs(moved)}`, moved > 0 ? 'up' : 'down'));
    const reason = device.reason(each.number);
    if (reason) row.append(element('span', `often with “${title(graphs, reason.number)}”`, 'why'));
    return row;
  }));
  const held = device.events.slice(-RECENT).reverse();
  part('recent').replaceChildren(...held.map(event => element('li', title(graphs, event.number))));
  const {sizes} = graphs.spec;
  const bytes = 8 * Math.min(device.events.length, sizes.ring) + Math.min(device.events.length, sizes.kept) * sizes.kept_features + 4 * sizes.theta + 8;
  part('known').textContent = `${device.events.length} events, ${bytes.toLocaleString('en')} bytes, only in this browser`;
  part('spent').textContent = `${graphs.ids.length.toLocaleString('en')} items ranked here in ${spent.toFixed(1)} ms`;
  part('theta').textContent = sizes.theta ? `θ̂: [${[...device.theta].slice(0, 4).map(value => value.toFixed(2)).join(', ')}, …]` : '';
  document.body.dataset.events = device.events.length;
  document.body.dataset.best = list.slice(0, TOP).map(each => each.number).join(' ');
  document.body.dataset.state = 'ready';
  return list;
}

async function choose(device, number, list) {
  document.body.dataset.state = 'busy';
  await device.observe(number);
  if (device.graphs.learn) await device.learn();
  channel.postMessage('changed');
  await show(device, list);
}

const channel = new BroadcastChannel('dcclctl');

async function start() {
  const graphs = await Graphs.open();
  const answer = await fetch('user.json');
  const device = await Device.open(graphs, answer.ok ? await answer.json() : null);
  channel.addEventListener('message', async () => { await device.refresh(); await show(device); });
  part('forget').addEventListener('click', async () => { await device.forget(); channel.postMessage('changed'); await show(device); });
  const {model, method, precision, items} = graphs.spec;
  part('what').textContent = `${model}${method ? ` with a ${method} patch` : ''}, ${items.shipped.toLocaleString('en')} items in ${precision}`;
  await show(device);
  window.dcclctl = {graphs, device, Device};
}

start().catch(error => {
  document.body.dataset.state = 'failed';
  part('what').textContent = error.message;
  throw error;
});
