// What Streamlit's own elements lack for who cannot see them, and what the page says once its server is gone.
// One observer for the whole window, begun by the first page.

const MARKS = /:[a-z-]+\[((?:[^[\]\\]|\\.)*)\]/g; // Markdown's colours: :gray[...], :small[...]
let words = {};
const told = new Set();
let watching = false;

export default function ({ data }) {
  words = data;
  for (const notice of data.notices) notify(notice);
  if (watching) return;
  watching = true;
  let asked = 0;
  const soon = () => (asked ||= requestAnimationFrame(() => ((asked = 0), mend())));
  const all = { subtree: true, childList: true, attributes: true, attributeFilter: ["aria-label"] };
  new MutationObserver(soon).observe(document.body, all);
  mend();
}

// Only where nobody looks: the page itself says it too. Several windows say it once, by its tag.
function notify({ id, title, body, url }) {
  if (!document.hidden || window.Notification?.permission !== "granted" || told.has(id)) return;
  told.add(id);
  const notice = new Notification(title, { body, tag: id });
  notice.onclick = () => {
    window.focus();
    location.assign(url);
  };
}

function mend() {
  for (const one of document.querySelectorAll('[aria-label*="["], [aria-label*="\\\\"]')) spoken(one);
  for (const icon of document.querySelectorAll('span[role="img"][aria-label$=" icon"]')) quiet(icon);
  for (const bar of document.querySelectorAll('[data-testid="stProgress"] [role="progressbar"]')) measured(bar);
  for (const picture of document.querySelectorAll("img:not([alt])")) picture.alt = ""; // what it shows stands beside it
  const list = document.querySelector('ul[data-testid="stSidebarNavItems"]:not([role])');
  if (list || document.querySelector('[data-testid="stSidebarNavItems"] li:not([role])')) grouped();
  for (const dialog of document.querySelectorAll('[role="dialog"]')) lost(dialog);
}

// A name as it is read: without Markdown's marks.
function spoken(one) {
  let name = one.getAttribute("aria-label");
  for (let before = ""; before !== name; ) [before, name] = [name, name.replace(MARKS, "$1")];
  name = name.replace(/\\([^A-Za-z0-9\s])/g, "$1").replace("●", "").replace(/\s+/g, " ").trim();
  if (name !== one.getAttribute("aria-label")) one.setAttribute("aria-label", name);
}

// An icon inside a text repeats what the text says, by its file's name.
function quiet(icon) {
  icon.removeAttribute("aria-label");
  icon.removeAttribute("role");
  icon.setAttribute("aria-hidden", "true");
}

function measured(bar) {
  const said = bar.closest('[data-testid="stProgress"]').innerText.trim();
  if (said && bar.getAttribute("aria-label") !== said) bar.setAttribute("aria-label", said);
}

// The menu's list holds groups, which a list may not; links and their groups' names are what counts.
function grouped() {
  for (const picture of document.querySelectorAll("img:not([alt])")) picture.alt = ""; // what it shows stands beside it
  const list = document.querySelector('ul[data-testid="stSidebarNavItems"]');
  list.setAttribute("role", "none");
  for (const item of list.querySelectorAll("li")) item.setAttribute("role", "none");
  for (const group of list.querySelectorAll(":scope > div")) {
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", group.querySelector("header p")?.textContent ?? "");
  }
}

// Streamlit asks for the Internet, which this page never needs. The nodes stay, for React owns them.
function lost(dialog) {
  const body = [...dialog.querySelectorAll("div")].at(-1)?.firstChild;
  if (body?.nodeType !== Node.TEXT_NODE || !body.nodeValue.includes("server is not responding")) return;
  const title = dialog.querySelector("h2")?.firstChild;
  if (title?.nodeType === Node.TEXT_NODE) title.nodeValue = words.lost;
  body.parentElement.style.whiteSpace = "pre-line";
  body.nodeValue = words.again;
}
