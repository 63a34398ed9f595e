// Makes the pages live. All of them work without it: what it does is to bring the server's own HTML in earlier.
"use strict";

const root = document.documentElement;
const find = (selector, from = document) => from.querySelector(selector);
const say = (text) => { const place = find("#say"); if (place) place.textContent = text; };

// The theme: the system's, or a chosen one that is kept in this browser.

const THEMES = ["system", "light", "dark"];
const themeButton = find("#theme");

function showTheme() {
  const theme = root.dataset.theme ?? "system";
  find("span", themeButton).textContent = theme[0].toUpperCase() + theme.slice(1);
  themeButton.setAttribute("aria-label", `Theme: ${theme}`);
}

function nextTheme() {
  const theme = THEMES[(THEMES.indexOf(root.dataset.theme ?? "system") + 1) % THEMES.length];
  if (theme === "system") delete root.dataset.theme; else root.dataset.theme = theme;
  try {
    if (theme === "system") localStorage.removeItem("theme"); else localStorage.setItem("theme", theme);
  } catch { /* Then it holds for this page. */ }
  showTheme();
}

if (themeButton) {
  showTheme();
  themeButton.addEventListener("click", nextTheme);
}

// Changes `old` into `fresh` and touches only what differs, so that focus, selection and scrolling stay.

function morph(old, fresh) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
    return;
  }
  for (const { name } of [...old.attributes]) {
    // What a reader has unfolded stays so.
    if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  const keyed = new Map();
  for (const child of old.children) if (child.id) keyed.set(child.id, child);
  let next = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    const same = child.id ? keyed.get(child.id) : next && !next.id && next.nodeName === child.nodeName && next;
    if (!same) {
      old.insertBefore(child, next);
      continue;
    }
    if (same === next) next = next.nextSibling; else old.insertBefore(same, next);
    morph(same, child);
  }
  while (next) {
    const gone = next;
    next = next.nextSibling;
    gone.remove();
  }
}

function bringIn(fresh) {
  const live = find("#live");
  if (!live || !fresh) return;
  const before = new Map([...live.querySelectorAll("[data-say]")].map((e) => [e.id, e.dataset.say]));
  morph(live, document.adoptNode(fresh));
  const news = [...live.querySelectorAll("[data-say]")]
    .filter((e) => before.has(e.id) && before.get(e.id) !== e.dataset.say)
    .map((e) => e.dataset.say);
  if (news.length > 0) say(news.slice(0, 3).join(". "));
}

const parse = (html) => new DOMParser().parseFromString(html, "text/html");

// Live content. The stream is closed while nobody looks: browsers allow few connections to one host.

const main = find("#main");
const state = find("#live-state");
let stream = null;
let again = 0;
let silence = 0;

function liveState(lost) {
  if (!state) return;
  state.hidden = false;
  const word = lost ? "Reconnecting" : "Live";
  if (state.textContent === word) return;
  state.textContent = word;
  if (lost) state.dataset.state = "lost"; else delete state.dataset.state;
  if (lost) say("The connection to the appliance is lost; trying again");
}

function close() {
  clearTimeout(again);
  clearTimeout(silence);
  stream?.close();
  stream = null;
}

function open() {
  close();
  if (!main?.dataset.live || document.hidden) return;
  stream = new EventSource(main.dataset.live);
  stream.addEventListener("open", alive);
  stream.addEventListener("still", alive);
  stream.addEventListener("page", (event) => { alive(); bringIn(find("#live", parse(event.data))); });
  stream.addEventListener("end", () => { close(); location.reload(); });
  stream.addEventListener("error", () => {
    liveState(true);
    // After an HTTP error a browser does not try again by itself.
    if (stream?.readyState === EventSource.CLOSED) later();
  });
}

// The appliance says something every few seconds; if not, the connection is dead and nobody has told us.
function alive() {
  liveState(false);
  clearTimeout(silence);
  silence = setTimeout(() => { liveState(true); open(); }, 20000);
}

function later() {
  close();
  again = setTimeout(async () => {
    try {
      const answer = await fetch(location.href, { credentials: "same-origin", redirect: "manual" });
      if (answer.type === "opaqueredirect" || answer.status === 404) location.reload(); else open();
    } catch { later(); }
  }, 3000);
}

document.addEventListener("visibilitychange", () => { if (document.hidden) close(); else open(); });
addEventListener("pagehide", close);
addEventListener("pageshow", (event) => { if (event.persisted) open(); });
open();

// Filters work while one types.

let typing = 0;
let question = 0;

async function filter(form) {
  const mine = ++question;
  const fields = [...new FormData(form)].filter(([, value]) => value !== "");
  const url = new URL(form.action);
  url.search = new URLSearchParams(fields);
  try {
    const answer = await fetch(url, { credentials: "same-origin" });
    if (mine !== question) return;
    const page = answer.ok && !answer.redirected && parse(await answer.text());
    if (mine !== question) return;
    if (!page || !find("#live", page)) { location.assign(url); return; }
    history.replaceState(null, "", url);
    main.dataset.live = find("#main", page).dataset.live;
    bringIn(find("#live", page));
    const count = find("#count");
    if (count) say(count.textContent);
    open();
  } catch { liveState(true); }
}

document.addEventListener("input", (event) => {
  const form = event.target.closest("form[data-filter]");
  if (!form) return;
  clearTimeout(typing);
  typing = setTimeout(filter, 200, form);
});

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.matches("[data-filter]")) {
    event.preventDefault();
    clearTimeout(typing);
    filter(form);
    return;
  }
  // A second click must not save twice.
  if (form.dataset.sent !== undefined) event.preventDefault();
  form.dataset.sent = "";
});
addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("[data-sent]")) delete form.dataset.sent;
});

// What asks back does so in a dialog: the page that it would lead to, with only its form.

const dialog = find("#dialog");

async function ask(link) {
  try {
    const answer = await fetch(link.href, { credentials: "same-origin" });
    const form = answer.ok && !answer.redirected && find("#confirm", parse(await answer.text()));
    if (!form) throw new Error("no form");
    dialog.replaceChildren(document.adoptNode(form));
    dialog.showModal();
  } catch { location.assign(link.href); }
}

async function copy(button) {
  const text = find(`#${button.dataset.copy}`);
  const word = find("[data-copy-word]", button);
  try {
    await navigator.clipboard.writeText(text.textContent);
    word.textContent = "Copied";
    say("Copied");
    setTimeout(() => { word.textContent = "Copy"; }, 2000);
  } catch {
    // Not allowed: then it is selected, ready for the keyboard.
    getSelection().selectAllChildren(text);
  }
}

document.addEventListener("click", (event) => {
  const on = (selector) => event.target.closest(selector);
  const plain = event.button === 0 && !event.ctrlKey && !event.metaKey && !event.shiftKey;
  const link = on("a[data-dialog]");
  if (link && plain && dialog) {
    event.preventDefault();
    ask(link);
  } else if (dialog?.open && (on("[data-cancel]") || event.target === dialog)) {
    event.preventDefault();
    dialog.close();
  } else if (on("[data-copy]")) {
    copy(on("[data-copy]"));
  }
});

// What went wrong with a form is met first.
find("#wrongs")?.focus();
