// A table whose rows are ticked and opened by id. Everything a person wrote goes in as text, never as markup.

const drawn = new WeakMap(); // the component's element -> what it shows now

export default function ({ data, parentElement, setStateValue, setTriggerValue }) {
  const now = drawn.get(parentElement) ?? { chosen: new Set(), turn: -1, rows: "" };
  drawn.set(parentElement, now);
  Object.assign(now, { data, setStateValue, setTriggerValue });
  // The page may still speak of a tick ago: only what has heard of the last one counts.
  if (data.turn >= now.turn) [now.chosen, now.turn] = [new Set(data.chosen), data.turn];

  const rows = JSON.stringify([data.columns, data.rows, data.many, data.label]);
  if (rows !== now.rows) {
    now.rows = rows;
    const focused = now.table?.contains(document.activeElement) ? document.activeElement.dataset.at : null;
    const frame = document.createElement("div");
    frame.className = "picked-table";
    frame.append((now.table = table(now)));
    parentElement.querySelector(":scope > .picked-table")?.remove();
    parentElement.append(frame);
    if (focused) now.table.querySelector(`[data-at="${CSS.escape(focused)}"]`)?.focus();
  }
  mark(now);
  const open = !data.many && rows !== now.seen && now.table.querySelector(".chosen");
  if (open) now.table.parentElement.scrollTop = open.offsetTop - open.offsetHeight * 2;
  now.seen = rows;
}

function table(now) {
  const made = element("table");
  made.setAttribute("aria-label", now.data.label);
  const head = made.createTHead().insertRow();
  if (now.data.many) head.append(element("th", box(now, "", "all", "Choose all rows")));
  for (const column of now.data.columns) {
    const cell = element("th", column.name);
    cell.scope = "col";
    cell.className = column.kind;
    if (column.width) cell.style.minWidth = `${column.width}px`;
    head.append(cell);
  }
  const body = made.createTBody();
  let heading = "";
  for (const row of now.data.rows) {
    if ((row.heading ?? "") !== heading) body.append(headed(now, (heading = row.heading)));
    body.append(line(now, row));
  }
  return made;
}

function headed(now, heading) {
  const made = element("tr");
  made.className = "heading";
  const cell = element("th", heading);
  cell.scope = "rowgroup";
  cell.colSpan = now.data.columns.length;
  cell.title = heading;
  made.append(cell);
  return made;
}

function line(now, row) {
  const made = element("tr");
  if (row.further) made.className = "further";
  made.dataset.row = row.id;
  if (now.data.many) made.insertCell().append(box(now, row.id, `tick ${row.id}`, `Choose ${row.cells[0]}`));
  row.cells.forEach((value, place) => {
    const cell = made.insertCell();
    const kind = now.data.columns[place].kind;
    cell.className = kind;
    if (kind === "link") cell.append(link(now, row, value));
    else if (kind === "spark") cell.append(spark(value));
    else if (kind === "tags") value.forEach((tag) => cell.append(element("span", tag)));
    else cell.title = cell.textContent = value;
  });
  made.addEventListener("click", (event) => {
    if (event.target.closest("a, input") || !getSelection().isCollapsed) return;
    if (now.data.many) tick(now, row.id, !now.chosen.has(row.id));
    else open(now, row.id);
  });
  return made;
}

function link(now, row, value) {
  const made = element("a", value);
  made.href = row.href;
  made.title = value;
  made.dataset.at = `open ${row.id}`;
  made.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // a tab or a window of its own
    event.preventDefault();
    open(now, row.id);
  });
  return made;
}

function box(now, id, at, label) {
  const made = element("input");
  made.type = "checkbox";
  made.dataset.at = at;
  made.setAttribute("aria-label", label);
  made.addEventListener("change", () => tick(now, id, made.checked));
  return made;
}

// `id` is empty for all rows.
function tick(now, id, on) {
  const ids = id ? [id] : now.data.rows.map((row) => row.id);
  for (const one of ids) on ? now.chosen.add(one) : now.chosen.delete(one);
  now.turn = Math.max(now.turn + 1, Date.now());
  mark(now);
  now.setStateValue("chosen", { ids: [...now.chosen], turn: now.turn });
}

function open(now, id) {
  now.setTriggerValue("opened", id);
}

function mark(now) {
  let ticked = 0;
  for (const line of now.table.tBodies[0].querySelectorAll("[data-row]")) {
    const on = now.chosen.has(line.dataset.row);
    ticked += on;
    line.classList.toggle("chosen", on);
    if (now.data.many) line.querySelector("input").checked = on;
    else if (on) line.setAttribute("aria-current", "true");
    else line.removeAttribute("aria-current");
  }
  const all = now.table.tHead.querySelector("input");
  if (all) [all.checked, all.indeterminate] = [ticked > 0 && ticked === now.data.rows.length, ticked > 0 && ticked < now.data.rows.length];
}

// A curve in small, without an axis; beside it stands its last value.
function spark(values) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  made.setAttribute("viewBox", "0 0 100 20");
  made.setAttribute("preserveAspectRatio", "none");
  made.setAttribute("aria-hidden", "true");
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const points = values.map((v, i) => `${(100 * i) / (values.length - 1)},${19 - (18 * (v - low)) / (high - low || 1)}`);
  const curve = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  curve.setAttribute("points", values.length > 1 ? points.join(" ") : "");
  made.append(curve);
  return made;
}

function element(name, content = "") {
  const made = document.createElement(name);
  made.append(content);
  return made;
}
