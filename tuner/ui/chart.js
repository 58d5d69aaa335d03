// A Plotly figure that grows in place: its node stays, and with it zoom, hover and a drag that is under way.

// Charts of one group share a crosshair and their zoom along x.

const groups = new Map(); // a group's name -> its charts
const charts = new WeakMap(); // the component's element -> its chart
let library; // Plotly, asked for once

// Called for every figure, and when the colours of the page change.
export default function ({ data, parentElement }) {
  let chart = charts.get(parentElement);
  if (!chart) charts.set(parentElement, (chart = made(parentElement)));
  chart.next = data;
  join(chart, data.group);
  chart.box.setAttribute("aria-label", data.alt);
  chart.box.style.height = `${data.height}px`; // its place is kept before anything is drawn
  draw(chart);
  return () => remove(chart, parentElement);
}

function made(parent) {
  const box = document.createElement("div");
  box.setAttribute("role", "img");
  parent.append(box);
  const chart = { box, next: null, busy: false, held: false, pointer: null };
  box.addEventListener("mousedown", () => (chart.held = true), true);
  box.addEventListener("mousemove", (event) => event.isTrusted && (chart.pointer = event), true);
  box.addEventListener("mouseleave", () => (chart.pointer = null));
  chart.released = () => {
    chart.held = false;
    // Plotly hears of the same release: the zoom that it ends comes first.
    setTimeout(() => draw(chart));
  };
  addEventListener("mouseup", chart.released);
  chart.cross = document.createElement("div");
  chart.cross.className = "chart-crosshair";
  chart.cross.hidden = true;
  parent.append(chart.cross);
  chart.seen = new ResizeObserver(() => chart.drawn && window.Plotly.Plots.resize(box));
  chart.seen.observe(box);
  return chart;
}

async function draw(chart) {
  if (chart.busy) return; // whoever draws goes on with what is newest
  chart.busy = true;
  try {
    while (chart.next && !chart.held && !chart.gone) {
      const Plotly = await plotly(chart.next.library);
      const { data, layout } = JSON.parse(coloured(chart));
      chart.next = null;
      if (chart.range) Object.assign(layout.xaxis, { range: chart.range, autorange: false });
      await Plotly.react(chart.box, data, layout, { displayModeBar: false, scrollZoom: false });
      if (!chart.drawn) follow(chart);
      chart.drawn = true;
      hover(chart);
    }
  } catch (error) {
    if (!chart.drawn) chart.box.textContent = "This chart could not be drawn; reload the page.";
    console.warn(error);
  } finally {
    chart.busy = false;
  }
}

function join(chart, name) {
  if (chart.group === name) return;
  groups.get(chart.group)?.delete(chart);
  chart.group = name;
  if (!name) return;
  if (!groups.has(name)) groups.set(name, new Set());
  groups.get(name).add(chart);
}

const others = (chart) => [...(groups.get(chart.group) ?? [])].filter((one) => one !== chart && one.drawn);

function follow(chart) {
  chart.box.on("plotly_hover", ({ xvals, points }) => {
    const x = xvals?.[0] ?? points[0].x;
    for (const one of others(chart)) cross(one, x);
  });
  chart.box.on("plotly_unhover", () => {
    for (const one of others(chart)) one.cross.hidden = true;
  });
  chart.box.on("plotly_relayout", (change) => {
    if (chart.told || !Object.keys(change).some((name) => name.startsWith("xaxis."))) return;
    const { autorange, range } = chart.box.layout.xaxis;
    chart.range = null; // Plotly keeps by itself what a person did to this one
    for (const one of others(chart)) zoom(one, autorange ? null : [...range]);
  });
}

// A line at x over another chart; its labels stay with the chart under the mouse.
function cross(chart, x) {
  const { xaxis, _size } = chart.box._fullLayout;
  const at = xaxis.d2p(x);
  chart.cross.hidden = !(at >= 0 && at <= xaxis._length);
  const place = { left: `${chart.box.offsetLeft + xaxis._offset + at}px`, top: `${chart.box.offsetTop + _size.t}px`, height: `${_size.h}px` };
  Object.assign(chart.cross.style, place);
}

async function zoom(chart, range) {
  chart.told = true;
  chart.range = range;
  try {
    await window.Plotly.relayout(chart.box, range ? { "xaxis.range": range } : { "xaxis.autorange": true });
  } finally {
    chart.told = false;
  }
}

function coloured({ box, next }) {
  if (getComputedStyle(box).colorScheme !== "dark") return next.figure;
  return next.figure.replace(/#[0-9a-f]{6}/g, (colour) => next.dark[colour] ?? colour);
}

// Drawing takes the label away that follows the mouse; the mouse still stands where it stood.
function hover(chart) {
  const { pointer, box } = chart;
  const under = pointer && document.elementFromPoint(pointer.clientX, pointer.clientY);
  if (!under || !box.contains(under)) return;
  const { clientX, clientY } = pointer;
  under.dispatchEvent(new MouseEvent("mousemove", { clientX, clientY, bubbles: true, view: window }));
}

function remove(chart, parent) {
  chart.gone = true;
  join(chart, "");
  chart.cross.remove();
  charts.delete(parent);
  chart.seen.disconnect();
  removeEventListener("mouseup", chart.released);
  chart.box.remove();
  // A label that Plotly is about to show still looks for its chart.
  setTimeout(() => window.Plotly?.purge(chart.box), 1000);
}

function plotly(address) {
  library ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = new URL(address, document.baseURI);
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => {
      library = undefined;
      reject(new Error(`${script.src} could not be loaded`));
    };
    document.head.append(script);
  });
  return library;
}
