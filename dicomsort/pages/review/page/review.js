// The review page: one item large, one key a class. Decisions are sent one after the other, in their order.
import { act, ask, picture } from "./asking.js";
import { $, describe } from "./drawing.js";
import { List } from "./list.js";

const EVERY = 4000; // milliseconds between looks whether somebody else has decided something
const list = new List($("list"), $("list-space"), (place) => open(place));
const buttons = [...document.querySelectorAll("#keys .class")];

let state = { revision: -1, count: 0, waiting: 0 };
const made = JSON.parse(sessionStorage.getItem("made") ?? "[]"); // the runs of this tab's decisions, the last one last
const now = { place: -1, key: "", version: "", pictures: 1, fellows: [], decided: "", seen: false };
let line = Promise.resolve(); // decisions and undos that are under way
let underway = 0;
let ended = false;
let resting = false; // nothing is shown, for nothing waits

const side = () => Math.min(1400, Math.round(Math.max(innerWidth, innerHeight) * Math.min(devicePixelRatio, 2)));

function counted(count, one, many = `${one}s`) {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}

function say(words, kind = "") {
  $("status").textContent = words;
  $("status").className = kind;
}

function tell(told) {
  const renewed = told.revision !== state.revision || told.count !== state.count;
  state = told;
  const part = told.count ? told.decided / told.count : 1;
  $("bar").style.width = `${100 * part}%`;
  $("progress").setAttribute("aria-valuemax", told.count);
  $("progress").setAttribute("aria-valuenow", told.decided);
  $("count").textContent = `${told.decided.toLocaleString("en")} of ${told.count.toLocaleString("en")} decided`;
  settle({});
  if (renewed) list.renew(told.count);
  return renewed;
}

async function open(place) {
  document.body.classList.remove("listing");
  $("show-list").setAttribute("aria-expanded", "false");
  settle({ place, key: "", version: "", pictures: 1, fellows: [], decided: "", seen: false });
  $("whole").checked = false;
  $("ended").hidden = true;
  $("frames").hidden = true;
  $("facts").hidden = false;
  document.body.classList.remove("idle");
  resting = false;
  list.mark(place);
  try {
    const facts = await ask(`item/${place}`);
    if (now.place !== place) return;
    now.version = facts.version;
    show(-1);
    describe(facts);
    list.note(facts);
    const key = facts.state === "waiting" ? facts.key : "";
    settle({ key, pictures: facts.pictures, fellows: facts.fellows, decided: facts.state === "decided" ? facts.run : "" });
    tellFrame();
  } catch (error) {
    if (now.place === place) say(error.message, "bad");
  }
}

function show(number) {
  const { place } = now;
  const image = $("picture");
  const address = picture(now, number, side());
  $("no-picture").hidden = true;
  image.onload = () => {
    image.hidden = false;
    if (now.place === place) settle({ seen: true });
  };
  image.onerror = async () => {
    image.hidden = true;
    $("no-picture").hidden = false;
    const why = await fetch(address).then((r) => (r.ok ? "" : r.text()), () => "the server does not answer");
    if (now.place !== place) return;
    $("no-picture").textContent = `No picture: ${why.trim() || "it cannot be shown"}`;
    settle({ seen: true });
  };
  image.src = address;
}

function tellFrame() {
  $("frame-told").textContent = `${Number($("frame").value) + 1} of ${now.pictures}`;
}

function step(by) {
  if (now.pictures < 2) return;
  const number = Math.min(now.pictures - 1, Math.max(0, Number($("frame").value) + by));
  $("frame").value = number;
  tellFrame();
  show(number);
}

async function advance(after) {
  const { place } = await ask(`next/${after}`);
  if (place < 0) rest();
  else await open(place);
}

function rest() {
  settle({ place: -1, key: "", version: "", pictures: 1, fellows: [], decided: "", seen: false });
  document.body.classList.add("idle");
  resting = true;
  $("picture").hidden = true;
  $("no-picture").hidden = true;
  $("frames").hidden = true;
  $("facts").hidden = true;
  $("ended").hidden = false;
  $("ended-head").textContent = state.count ? "Everything is decided" : "Nothing waits for a decision";
  $("ended-told").textContent = state.count
    ? "U takes the last decision back. Finish ends the page, and the command says how a model learns from this."
    : "What `dicomsort sort` holds back below REVIEW appears here.";
}

// What is not shown yet cannot be decided about, and what is shown only once.
function settle(changes) {
  Object.assign(now, changes);
  for (const button of buttons) button.disabled = ended || !now.key || !now.seen;
  $("undo").disabled = ended || !(now.decided || made.length);
}

function decide(chosen, whole = false) {
  if (ended || now.place < 0) return;
  if (!now.key || !now.seen) {
    say("Wait: the picture is not there yet");
    return;
  }
  const { place, key, version } = now;
  settle({ key: "" });
  say(`${chosen} …`);
  const chain = [{ place, key, version }, ...(whole || $("whole").checked ? now.fellows : [])];
  let moved = 0;
  const notes = [];
  for (const each of chain) {
    const told = { ...each, class: chosen, who: $("who").value };
    send("decide", () => told, async (found) => {
      moved += found.moved;
      if (found.moved) remember(found.run);
      notes.push(...found.notes);
      say([`${chosen}: ${counted(moved, "file")} moved`, ...notes].join("; "), notes.length ? "wait" : "good");
      if (each !== chain.at(-1)) return;
      if (moved) await advance(place);
      else await open(place);
    });
  }
}

function remember(run, isMade = true) {
  if (isMade) made.push(run);
  else if (made.includes(run)) made.splice(made.lastIndexOf(run), 1);
  sessionStorage.setItem("made", JSON.stringify(made));
  settle({});
}

// The decision about what is shown, else the last one of this tab: nobody else's by surprise.
function undo() {
  const { decided } = now;
  if (ended || !(decided || made.length || underway)) return;
  let run = "";
  send("undo", () => ({ run: (run = decided || made.at(-1) || "") }), async (found) => {
    remember(run, false);
    say("The decision is undone", "good");
    if (found.place >= 0) await open(found.place);
  }, () => remember(run, false));
}

// One after the other: what an undo is about is what came before it.
function send(what, told, then, refused = () => {}) {
  underway += 1;
  line = line
    .then(async () => {
      const found = await act(what, told());
      tell(found);
      await then(found);
    })
    .catch(async (error) => {
      say(error.message, "bad");
      if (error.status === 409) {
        refused();
        await look();
      }
      if (now.place >= 0) await open(now.place);
    })
    .finally(() => {
      underway -= 1;
    });
}

async function look() {
  if (ended) return false;
  try {
    const before = state.waiting;
    const renewed = tell(await ask("state"));
    if (resting && state.waiting > 0 && before === 0) await advance(-1);
    else if (renewed && now.place >= 0 && now.version) await renew(now.place);
    return true;
  } catch (error) {
    say(error.message, "bad");
    return false;
  }
}

// What is shown has perhaps been decided by somebody else, or grown.
async function renew(place) {
  const { items } = await ask(`items/${place}/1`);
  if (now.place !== place || underway || !items.length) return;
  const changed = items[0].version !== now.version || (items[0].state === "decided" ? items[0].run : "") !== now.decided;
  if (changed) await open(place);
}

async function finish() {
  await line;
  try {
    const told = await act("finish", {});
    ended = true;
    rest();
    $("ended-head").textContent = "The review is finished";
    $("ended-told").textContent =
      `${counted(told.made, "decision")} in this session; ${counted(told.waiting, "item still waits", "items still wait")}. ` +
      "This page can be closed.";
    $("ended-train").textContent = told.train;
    $("ended-train").hidden = !told.train;
    document.body.classList.add("ended");
    for (const button of document.querySelectorAll("button, input")) button.disabled = true;
    say("");
  } catch (error) {
    say(error.message, "bad");
  }
}

function move(by) {
  const place = now.place + by;
  if (place >= 0 && place < state.count) open(place);
}

const skip = () => advance(now.place).catch((error) => say(error.message, "bad"));
const ONCE = new Set(["u", "s"]); // a key that is held down does these once
const KEYS = {
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
  ArrowUp: () => move(-1),
  ArrowDown: () => move(1),
  k: () => move(-1),
  j: () => move(1),
  s: skip,
  u: undo,
};

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.id === "who") return;
  if (event.target.id === "frame" && event.key.startsWith("Arrow")) return;
  const named = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const placed = event.code.replace(/^(Key|Digit)/, "").toLowerCase(); // of another alphabet, or with Shift
  const button = buttons.find(({ dataset }) => dataset.key === named) ?? buttons.find(({ dataset }) => dataset.key === placed);
  const other = KEYS[named] ? named : KEYS[placed] && placed.length === 1 ? placed : "";
  if (!button && !other) return;
  event.preventDefault();
  if (event.repeat && (button || ONCE.has(other))) return;
  if (button) decide(button.dataset.class, event.shiftKey);
  else KEYS[other]();
});
for (const button of buttons) button.addEventListener("click", (event) => decide(button.dataset.class, event.shiftKey));
$("skip").addEventListener("click", skip);
$("undo").addEventListener("click", undo);
$("finish").addEventListener("click", finish);
$("frame").addEventListener("input", () => step(0));
$("frame-back").addEventListener("click", () => step(-1));
$("frame-on").addEventListener("click", () => step(1));
$("who").value = sessionStorage.getItem("who") ?? $("who").value;
$("who").addEventListener("change", () => sessionStorage.setItem("who", $("who").value));
$("show-list").addEventListener("click", () => {
  const listing = document.body.classList.toggle("listing");
  $("show-list").setAttribute("aria-expanded", String(listing));
  list.draw();
});
addEventListener("beforeunload", (event) => {
  if (underway) event.preventDefault();
});
setInterval(() => {
  if (!underway && document.visibilityState === "visible") look();
}, EVERY);
look().then((isThere) => isThere && (state.waiting ? advance(-1) : rest()));
