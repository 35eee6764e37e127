// Run a bundle in a browser: rank items for its user, remember events, learn θ̂. The same as runner/python/device.py.
// The user's events stay in this browser's IndexedDB; nothing is sent anywhere.

import * as ort from './ort.wasm.bundle.min.mjs';

export const SPEC = 2;
const TYPES = {F32: Float32Array, F16: Uint16Array, I8: Int8Array, U16: Uint16Array, I32: Int32Array, I64: BigInt64Array, BOOL: Uint8Array};

export class BundleError extends Error {}

async function fetched(name) {
  const answer = await fetch(name, {cache: 'no-store'});
  if (!answer.ok) throw new BundleError(`${name} is missing from the bundle. Copy the whole folder again.`);
  return new Uint8Array(await answer.arrayBuffer());
}

async function sha256(bytes) {
  const digest = await crypto.subtle.digest('SHA-256', bytes);
  return [...new Uint8Array(digest)].map(byte => byte.toString(16).padStart(2, '0')).join('');
}

const json = bytes => JSON.parse(new TextDecoder().decode(bytes));

// Tensors of a safetensors file: name → {shape, data}; data are views of the file.
export function tensorsOf(bytes) {
  const size = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
  const header = json(bytes.subarray(8, 8 + size));
  const found = {};
  for (const [name, {dtype, shape, data_offsets: [begin, end]}] of Object.entries(header)) {
    if (name === '__metadata__') continue;
    const copy = bytes.slice(8 + size + begin, 8 + size + end);
    found[name] = {dtype, shape, data: new TYPES[dtype](copy.buffer)};
  }
  return found;
}

// The graphs and tables of the bundle beside this page; every file is checked against its hash first.
export class Graphs {
  static async open() {
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmPaths = {wasm: new URL('ort-wasm-simd-threaded.wasm', import.meta.url).href};
    const graphs = new Graphs();
    graphs.spec = json(await fetched('bundle.json'));
    if (graphs.spec.spec !== SPEC) {
      throw new BundleError(`The bundle has version ${graphs.spec.spec}; this page reads ${SPEC}. Export it again.`);
    }
    const files = {};
    for (const [name, {sha256: wanted}] of Object.entries(graphs.spec.files)) {
      if (name.startsWith('runner/') || name.endsWith('.pte')) continue;
      files[name] = await fetched(name);
      if (await sha256(files[name]) !== wanted) {
        throw new BundleError(`${name} is cut or changed: its hash is not the one in bundle.json. Copy the bundle again.`);
      }
    }
    const catalogue = json(files['catalogue.json']);
    graphs.ids = catalogue.items;
    graphs.names = catalogue.names;
    graphs.drawn = catalogue.drawn;
    graphs.number = new Map(graphs.ids.map((id, at) => [id, at]));
    graphs.items = tensorsOf(files['items.safetensors']);
    graphs.golden = tensorsOf(files['golden.safetensors']);
    const open = async name => {
      const externalData = graphs.spec.graphs[name].tables.map(path => ({path, data: files[path]}));
      try {
        return await ort.InferenceSession.create(files[name], {externalData});
      } catch (error) {
        throw new BundleError(`${name}: this ONNX Runtime cannot open the graph: ${error.message}. `
          + 'It needs the operators of ONNX opset 18: onnxruntime-web 1.16 or newer.');
      }
    };
    graphs.score = await open('score.onnx');
    graphs.learn = files['learn.onnx'] ? await open('learn.onnx') : null;
    return graphs;
  }

  // Largest difference to the golden vectors, over all cases.
  async check() {
    const cases = {};
    for (const [key, tensor] of Object.entries(this.golden)) {
      const [name, side, input] = key.split('/');
      ((cases[name] ??= {in: {}, out: {}})[side])[input] = tensor;
    }
    let largest = 0;
    for (const [name, {in: given, out: wanted}] of Object.entries(cases)) {
      const feeds = Object.fromEntries(Object.entries(given).map(([key, {dtype, shape, data}]) => [key, tensor(dtype, data, shape)]));
      const found = await (name === 'learn' ? this.learn : this.score).run(feeds);
      for (const [key, {data}] of Object.entries(wanted)) {
        data.forEach((value, at) => { largest = Math.max(largest, Math.abs(value - found[key].data[at]) / Math.max(1, Math.abs(value))); });
      }
    }
    return {cases: Object.keys(cases).length, largest};
  }
}

const KINDS = {F32: 'float32', I64: 'int64', I8: 'int8', BOOL: 'bool'};
const tensor = (dtype, data, shape) => new ort.Tensor(KINDS[dtype], data, shape);
const floats = (values, ...shape) => new ort.Tensor('float32', Float32Array.from(values), shape);
const ints = (values, ...shape) => new ort.Tensor('int64', BigInt64Array.from(values, BigInt), shape);
const flag = value => new ort.Tensor('bool', Uint8Array.of(value ? 1 : 0), []);

// To even, as numpy and torch round.
function rounded(value) {
  const floor = Math.floor(value), rest = value - floor;
  return rest < 0.5 || (rest === 0.5 && floor % 2 === 0) ? floor : floor + 1;
}

// One user's device. Every event is appended to IndexedDB, so that a reload or a second tab sees the same user.
export class Device {
  static async open(graphs, user) {
    if (user?.bundle && user.bundle !== graphs.spec.id) throw new BundleError('user.json is of another bundle. Export it again.');
    const device = new Device();
    device.graphs = graphs;
    device.database = await database(`dcclctl ${graphs.spec.id}${user ? ' ' + await sha256(new TextEncoder().encode(JSON.stringify(user))) : ''}`);
    const {profile, theta} = graphs.spec.sizes;
    device.profile = user?.profile ?? Array(profile).fill(0);
    device.theta = Float32Array.from(user?.theta?.length ? user.theta : Array(theta).fill(0));
    device.moments = {first: new Float32Array(theta), second: new Float32Array(theta), step: 0};
    device.patched = user?.patched ?? true;
    device.counted = user?.counted ?? false;
    device.unknown = 0;
    await device.exclusively(async () => {
      await device.refresh();
      if (!device.events.length) {
        for (const [id, time] of user?.events ?? []) {
          const number = graphs.number.get(id);
          if (number === undefined) device.unknown += 1;
          else await device.append(number, time);
        }
      }
    });
    return device;
  }

  // No other tab changes the events while `work` runs.
  exclusively(work) { return navigator.locks.request(this.database.name, work); }

  async refresh() {
    this.events = await all(this.database, 'events');
    const saved = await one(this.database, 'state', 'theta');
    if (saved) ({theta: this.theta, moments: this.moments} = saved);
  }

  // Remember one event, by the item's number in the bundle.
  observe(number) {
    return this.exclusively(async () => {
      await this.refresh();
      const last = this.events.at(-1);
      await this.append(number, Math.max(Date.now() / 1000, last ? last.time + 1 : 0));
    });
  }

  async append(number, time) {
    const event = {number, time, kept: null};
    if (this.graphs.spec.sizes.kept) {
      const {features} = await this.run([number], time);
      const steps = this.graphs.spec.constants.steps;
      event.kept = Int8Array.from(features.data.slice(1), value => Math.max(-127, Math.min(127, rounded(Math.fround(value * steps)))));
    }
    await added(this.database, 'events', event);
    this.events.push(event);
  }

  async forget() {
    await this.exclusively(async () => {
      await cleared(this.database, 'events');
      await cleared(this.database, 'state');
      this.events = [];
      this.theta = this.theta.map(() => 0);
      this.moments = {first: this.theta.map(() => 0), second: this.theta.map(() => 0), step: 0};
    });
  }

  inputs(numbers, before = Infinity) {
    const {ring, kept, kept_features: width} = this.graphs.spec.sizes;
    const held = this.events.slice(-ring).filter(event => event.time < before).reverse();
    const items = held.length ? held.map(event => event.number) : [0];
    let basket = 0;
    const baskets = items.map((_, at) => (at && held[at].time !== held[at - 1].time ? ++basket : basket));
    const newest = kept ? this.events.slice(-kept) : [];
    const features = new Int8Array(kept * width);
    newest.forEach((event, at) => features.set(event.kept, at * width));
    const given = {
      ring: ints(items, items.length),
      held: ints([held.length]),
      baskets: ints(baskets, items.length),
      candidates: ints(numbers, numbers.length),
      profile: ints(this.profile, this.profile.length),
      theta: floats(this.theta, this.theta.length),
      kept: new ort.Tensor('int8', features, [kept, width]),
      kept_count: ints([newest.length]),
      counted: flag(this.counted),
      patched: flag(this.patched),
    };
    return Object.fromEntries(this.graphs.score.inputNames.map(name => [name, given[name]]));
  }

  run(numbers, before) { return this.graphs.score.run(this.inputs(numbers, before)); }

  // The best items: [{number, logit, rank}], best first; ties in the order of the bundle's items.
  async recommend(top) {
    const numbers = this.graphs.ids.map((_, at) => at);
    const {logits} = await this.run(numbers);
    const known = new Set(this.graphs.spec.repeats ? [] : this.events.map(event => event.number));
    return numbers.filter(number => !known.has(number))
      .sort((a, b) => logits.data[b] - logits.data[a] || a - b)
      .slice(0, top).map((number, at) => ({number, logit: logits.data[number], rank: at + 1}));
  }

  // Learn θ̂ from the newest events, with random items as negatives; returns the length of the change.
  learn(events = 20) {
    return this.exclusively(async () => {
      await this.refresh();
      const {negatives, steps, states, start} = this.graphs.spec.learning;
      const before = this.theta;
      const parts = {activations: [], candidates: [], labels: [], weights: []};
      const newest = this.events.slice(-events);
      const chosen = new Set(newest.map(event => event.number));
      const free = this.graphs.drawn.filter(number => !chosen.has(number));
      const pool = free.length ? free : this.graphs.drawn;
      for (const event of newest) {
        const candidates = [event.number];
        while (candidates.length <= negatives) candidates.push(pool[Math.floor(Math.random() * pool.length)]);
        const {activations} = await this.run(candidates, event.time);
        parts.activations.push(...activations.data);
        parts.candidates.push(...candidates);
        parts.labels.push(1, ...Array(negatives).fill(0));
        parts.weights.push(...Array(negatives + 1).fill(1));
      }
      const rows = newest.length * (negatives + 1), width = negatives + 1;
      const shape = states ? [newest.length, width] : [rows];
      const given = {
        activations: floats(parts.activations, states ? newest.length : rows, parts.activations.length / (states ? newest.length : rows)),
        labels: floats(parts.labels, ...shape),
        weights: floats(parts.weights, ...shape),
      };
      if (states) given.candidates = ints(parts.candidates, ...shape);
      let theta = Float32Array.from(start), first = new Float32Array(start.length), second = new Float32Array(start.length);
      for (let step = 1; step <= steps; step++) {
        const found = await this.graphs.learn.run({
          ...given, theta: floats(theta, theta.length), first: floats(first, first.length), second: floats(second, second.length), step: floats([step]),
        });
        [theta, first, second] = [found.new_theta.data, found.new_first.data, found.new_second.data];
      }
      this.theta = theta;
      this.moments = {first, second, step: steps};
      await put(this.database, 'state', 'theta', {theta, moments: this.moments});
      return Math.hypot(...theta.map((value, at) => value - before[at]));
    });
  }

  // Why is an item here? Its most similar event, by the table that the cloud sent; null without such a table.
  reason(number) {
    const {neighbours, similarity} = this.graphs.items;
    if (!neighbours) return null;
    const width = neighbours.shape[1], curve = this.graphs.items['similarity.curve'];
    const held = new Map(this.events.map((event, at) => [event.number, at]));
    let best = null;
    for (let at = 0; at < width; at++) {
      const other = neighbours.data[number * width + at];
      const value = curve
        ? Math.exp(half(curve.data[2 * number]) + half(curve.data[2 * number + 1]) * Math.log(at + 1))
        : similarity.dtype === 'F16' ? half(similarity.data[number * width + at]) : similarity.data[number * width + at];
      if (value > 0 && held.has(other) && (!best || value > best.value)) best = {number: other, value, at: held.get(other)};
    }
    return best;
  }
}

function half(bits) {
  const sign = bits >> 15 ? -1 : 1, exponent = (bits >> 10) & 31, rest = bits & 1023;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + rest / 1024) : 2 ** -14 * (rest / 1024));
}

// -- IndexedDB

const done = request => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

function database(name) {
  const request = indexedDB.open(name, 1);
  request.onupgradeneeded = () => {
    request.result.createObjectStore('events', {autoIncrement: true});
    request.result.createObjectStore('state');
  };
  return done(request);
}

const stored = (base, name, mode) => base.transaction(name, mode).objectStore(name);
const all = (base, name) => done(stored(base, name, 'readonly').getAll());
const one = (base, name, key) => done(stored(base, name, 'readonly').get(key));
const added = (base, name, value) => done(stored(base, name, 'readwrite').add(value));
const put = (base, name, key, value) => done(stored(base, name, 'readwrite').put(value, key));
const cleared = (base, name) => done(stored(base, name, 'readwrite').clear());
