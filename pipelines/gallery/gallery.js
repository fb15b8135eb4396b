// The page itself: a list of which only the visible part is there, one photograph at a time in large, and the
// rejected inputs. What it shows comes from side files as it is needed; each calls maskmill(its name, its content).
// Everything that comes from the corpus is set as text.

const index = JSON.parse(document.getElementById("index").textContent);
const FILES = document.documentElement.dataset.files;
const UNITS = 200, GAP = 14, CAPTION = 54, TILE = 250, ROWS_AROUND = 2, KEPT = 150, AHEAD = 50, WINDOW = 20000;
const byId = id => document.getElementById(id);
const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
const padded = number => String(number).padStart(6, "0");

// ---- Side files ------------------------------------------------------------------------------------------

const asked = new Map();  // name → { promise, resolve }, the longest unused first

window.maskmill = (name, content) => {
  const file = asked.get(name);
  if (!file) return;
  file.here = true;
  file.resolve(content);
};

function load(name) {
  let file = asked.get(name);
  if (file) {
    asked.delete(name);
  } else {
    file = {};
    file.promise = new Promise((resolve, reject) => {
      const script = document.createElement("script");
      Object.assign(file, { resolve });
      script.src = `${FILES}/${name}`;
      script.onload = () => script.remove();
      script.onerror = () => { script.remove(); asked.delete(name); reject(new Error(`${name} cannot be loaded`)); };
      document.head.append(script);
    });
  }
  asked.set(name, file);
  for (const [oldest, { here }] of asked) {
    if (asked.size <= KEPT) break;
    if (here) asked.delete(oldest);
  }
  return file.promise;
}

const loadMasks = number => load(`masks-${padded(number)}.js`).then(content => content.colours ? content : Object.assign(content, unpacked(content)));

const blocks = [];

async function loadBlock(block) {
  if (blocks[block]) return;
  const entries = await load(`photographs-${padded(block)}.js`);
  blocks[block] ??= entries.map(([key, id, width, height, candidates, scores]) => ({
    key, id, width, height, candidates, scores: Uint8Array.from(atob(scores), letter => letter.charCodeAt(0)),
  }));
}

const entryOf = number => blocks[Math.floor(number / index.block)]?.[number % index.block];

// ---- Which masks are shown -------------------------------------------------------------------------------

const filter = { iou: 0, stability: 0, smallest: 0, largest: UNITS };

function passes({ scores }, mask) {
  const at = 3 * mask, size = scores[at + 2];
  return scores[at] >= filter.iou && scores[at + 1] >= filter.stability && size >= filter.smallest && size <= filter.largest;
}

function shownOf(entry) {
  let shown = 0;
  for (let mask = 0; 3 * mask < entry.scores.length; mask++) shown += passes(entry, mask);
  return shown;
}

function setUpSlider(id, name, least, say) {
  const slider = byId(id);
  Object.assign(slider, { min: least, max: UNITS, step: 1 });
  slider.value = filter[name] = Math.max(filter[name], least);
  const tell = () => {
    filter[name] = Number(slider.value);
    slider.previousElementSibling.textContent = say(filter[name]);
    slider.setAttribute("aria-valuetext", say(filter[name]));
  };
  slider.addEventListener("input", () => { tell(); soon(refilter); });
  tell();
}

function tellShown() {
  let shown = 0, all = 0, photographs = 0;
  for (const entry of blocks.flat()) {
    if (!entry) continue;
    photographs++;
    all += entry.scores.length / 3;
    shown += shownOf(entry);
  }
  const whole = photographs === index.photographs ? "" : ` in ${count(photographs, "image")}`;
  byId("shown").textContent = `${shown.toLocaleString("en")} of ${count(all, "mask")}${whole}`;
}

const due = new Set();

function soon(task) {  // at most once before the next frame
  if (!due.size) requestAnimationFrame(() => { const tasks = [...due]; due.clear(); tasks.forEach(each => each()); });
  due.add(task);
}

function refilter() {
  tellShown();
  tiles.forEach(captionTile);
  tiles.forEach(drawTile);
  if (viewed) showMasks();
}

// ---- The list --------------------------------------------------------------------------------------------

const list = byId("list"), tiles = new Map();
let columns = 1, tileWidth = TILE, base = 0, current = 0;

const inWindow = () => Math.min(WINDOW, index.photographs - base);
const rowHeight = () => tileWidth * 3 / 4 + CAPTION + GAP;

function layOut() {
  if (byId("photographs").hidden) return;
  const width = list.clientWidth;
  columns = Math.max(width < 500 ? 2 : 1, Math.floor((width + GAP) / (TILE + GAP)));
  tileWidth = (width - GAP * (columns - 1)) / columns;
  list.style.height = `${Math.max(0, Math.ceil(inWindow() / columns) * rowHeight() - GAP)}px`;
  const top = -list.getBoundingClientRect().top, first = Math.floor(top / rowHeight()) - ROWS_AROUND;
  const last = Math.ceil((top + innerHeight) / rowHeight()) + ROWS_AROUND;
  const from = base + Math.max(0, first * columns), to = base + Math.min(inWindow(), Math.max(0, last) * columns);
  for (const [number, tile] of tiles) {
    if ((number >= from && number < to) || tile.item.contains(document.activeElement)) continue;
    tile.item.remove();
    tiles.delete(number);
  }
  for (let number = from; number < to; number++) {
    if (!tiles.has(number)) tiles.set(number, addTile(number));
    const { item } = tiles.get(number), place = number - base;
    const x = place % columns * (tileWidth + GAP), y = Math.floor(place / columns) * rowHeight();
    item.style.transform = `translate(${x}px, ${y}px)`;
    item.style.width = `${tileWidth}px`;
  }
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function addTile(number) {
  const image = element("img", { alt: "", decoding: "async", src: `${FILES}/thumb-${padded(number)}.jpg` });
  const canvas = element("canvas"), name = element("bdi"), facts = element("small");
  const frame = element("span", { className: "frame" }, image, canvas);
  const link = element("a", { href: `#${number + 1}`, tabIndex: number === current ? 0 : -1 }, frame, name, facts);
  const item = element("li", {}, link), tile = { number, item, link, image, canvas, name, facts };
  image.onerror = () => frame.classList.add("gone");
  image.onload = () => image.classList.add("here");
  item.setAttribute("aria-posinset", number + 1);
  item.setAttribute("aria-setsize", index.photographs);
  list.append(item);
  loadBlock(Math.floor(number / index.block)).then(() => { captionTile(tile); tellShown(); }, () => { facts.textContent = "cannot be loaded"; });
  setTimeout(() => { if (item.isConnected) loadMasks(number).then(content => { tile.content = content; drawTile(tile); }, () => {}); }, 60);
  return tile;
}

function captionTile({ number, link, name, facts }) {
  const entry = entryOf(number);
  if (!entry) return;
  const all = entry.scores.length / 3, shown = shownOf(entry);
  name.textContent = entry.key.slice(entry.key.lastIndexOf("/") + 1);
  link.title = entry.key;
  facts.textContent = all ? (shown === all ? count(all, "mask") : `${shown} of ${count(all, "mask")}`) : "no mask";
}

function drawTile({ number, canvas, content }) {
  const entry = entryOf(number);
  if (!content || !entry) return;
  const { width, height, masks, colours } = content, step = Math.max(1, Math.ceil(Math.max(width, height) / 420));
  canvas.width = Math.ceil(width / step);
  canvas.height = Math.ceil(height / step);
  const ids = new Uint32Array(canvas.width * canvas.height);
  masks.forEach((mask, at) => {
    if (passes(entry, at)) mark(ids, mask.thin ??= thinned(mask.runs, height, step), at + 1);
  });
  paint(canvas, ids, colours, FILL);
}

function focusTile(number) {
  number = Math.min(Math.max(number, base), base + inWindow() - 1);
  tiles.get(current)?.link.setAttribute("tabindex", -1);
  current = number;
  showRowOf(number);
  layOut();
  const link = tiles.get(number)?.link;
  link?.setAttribute("tabindex", 0);
  link?.focus({ preventScroll: true });
}

function showRowOf(number) {
  const top = list.getBoundingClientRect().top + Math.floor((number - base) / columns) * rowHeight();
  const bar = document.querySelector(".bar").offsetHeight + GAP;
  if (top < bar) scrollBy(0, top - bar);
  else if (top + rowHeight() > innerHeight) scrollBy(0, top + rowHeight() - innerHeight);
}

list.addEventListener("keydown", event => {
  const rows = Math.max(1, Math.floor(innerHeight / rowHeight())) * columns;
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, PageDown: rows, PageUp: -rows, Home: -Infinity, End: Infinity };
  if (!(event.key in steps) || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  focusTile(current + steps[event.key]);
});

// ---- One photograph --------------------------------------------------------------------------------------

const stage = byId("stage"), tip = stage.querySelector(".tip"), options = byId("masks-list");
const [image, gone] = [stage.querySelector("img"), stage.querySelector(".gone")];
const [all, spotlight] = stage.querySelectorAll("canvas");
let viewed = null;  // { number, entry, content, ids, shown: the places of the masks that are shown }
let wanted = -1;  // the photograph that was asked for last: a slower answer to an earlier question is let go
let selected = -1, hovered = -1, lit = -1;

async function view(number) {
  wanted = number;
  const content = loadMasks(number);
  content.catch(() => {});  // it is awaited below, where its failure is told
  await loadBlock(Math.floor(number / index.block));
  if (wanted !== number) return;
  const entry = entryOf(number);
  current = number;
  viewed = { number, entry, content: null, ids: null, shown: [] };
  selected = hovered = -1;
  const folder = entry.key.lastIndexOf("/") + 1;
  byId("photograph-name").replaceChildren(element("bdi", {}, element("span", {}, entry.key.slice(0, folder)), entry.key.slice(folder)));
  stage.style.setProperty("--ratio", entry.width / entry.height);
  stage.setAttribute("aria-label", `Image ${entry.key}; up and down arrow keys go from mask to mask`);
  gone.hidden = true;
  image.hidden = false;
  image.alt = `image ${entry.key}`;
  image.src = `${FILES}/photo-${padded(number)}.jpg`;
  byId("previous").disabled = number === 0;
  byId("next").disabled = number === index.photographs - 1;
  for (const canvas of [all, spotlight]) canvas.width = canvas.height = 0;
  options.replaceChildren();
  light(-1);
  tellPhotograph();
  const loaded = await content;
  if (viewed?.number !== number) return;
  viewed.content = loaded;
  if (loaded.problem) {
    image.hidden = true;
    gone.hidden = false;
    gone.textContent = `The image cannot be shown: ${loaded.problem}.`;
  }
  for (const canvas of [all, spotlight]) Object.assign(canvas, { width: loaded.width, height: loaded.height });
  showMasks();
}

function tellPhotograph() {
  const { entry, number } = viewed, total = entry.scores.length / 3, shown = shownOf(entry);
  const masks = total ? `${shown === total ? "" : `${shown} of `}${count(total, "mask")}` : "no mask";
  byId("facts").textContent = `${(number + 1).toLocaleString("en")} of ${count(index.photographs, "image")} · `
    + `${entry.width} × ${entry.height} · ${masks} from ${count(entry.candidates, "candidate")} · image_id ${entry.id}`;
}

function showMasks() {
  tellPhotograph();
  const { entry, content } = viewed;
  if (!content) return;
  const { width, height, masks, colours } = content;
  const ids = viewed.ids = new Uint32Array(width * height);
  viewed.shown = [...masks.keys()].filter(at => passes(entry, at));
  for (const at of viewed.shown) mark(ids, masks[at].runs, at + 1);
  paint(all, ids, colours, FILL);
  options.replaceChildren(...viewed.shown.map(at => optionOf(at, masks[at])));
  if (!viewed.shown.includes(selected)) selected = -1;
  hovered = -1;
  lit = -2;
  light(selected);
}

function optionOf(at, mask) {
  const swatch = element("i");
  swatch.style.background = mask.colour;
  const option = element("li", { id: `mask-${at}` }, swatch,
    element("span", {}, mask.predictedIou.toFixed(3)), element("span", {}, mask.stability.toFixed(3)), element("span", {}, sizeOf(mask)));
  option.setAttribute("role", "option");
  option.setAttribute("aria-selected", at === selected);
  option.setAttribute("aria-label", factsOf(mask).join(", "));
  option.dataset.mask = at;
  return option;
}

const sizeOf = ({ area }) => `${(100 * Math.sqrt(area / viewed.content.pixels)).toFixed(1)} %`;

function factsOf(mask) {
  const share = 100 * mask.area / viewed.content.pixels;
  return [
    `predicted IoU ${mask.predictedIou.toFixed(3)}`,
    `stability ${mask.stability.toFixed(3)}`,
    `${mask.area.toLocaleString("en")} px (${share.toFixed(share < 1 ? 2 : 1)} %)`,
    ...mask.points.map(([x, y]) => `point at ${Math.round(x)}, ${Math.round(y)}`),
  ];
}

// Put one mask in the light, −1 for none: the others step back, its facts and its point are shown.
function light(at) {
  if (at === lit) return;
  lit = at;
  stage.classList.toggle("lit", at >= 0);
  spotlight.getContext("2d").clearRect(0, 0, spotlight.width, spotlight.height);
  tip.replaceChildren();
  if (at < 0) return;
  const { masks, colours, scale } = viewed.content, mask = masks[at], ids = new Uint32Array(spotlight.width * spotlight.height);
  mark(ids, mask.runs, at + 1);
  paint(spotlight, ids, colours, LIT_FILL);
  mask.points.forEach(([x, y]) => drawPrompt(spotlight, x * scale, y * scale));
  const swatch = element("i");
  swatch.style.background = mask.colour;
  tip.append(swatch, ...factsOf(mask).flatMap((fact, place) => place ? [" · ", element("span", {}, fact)] : [element("span", {}, fact)]));
}

function select(at) {
  selected = at;
  for (const option of options.children) option.setAttribute("aria-selected", Number(option.dataset.mask) === at);
  const chosen = options.querySelector('[aria-selected="true"]');
  options.setAttribute("aria-activedescendant", chosen ? chosen.id : "");
  if (chosen) options.scrollTop = Math.max(Math.min(options.scrollTop, chosen.offsetTop), chosen.offsetTop + chosen.offsetHeight - options.clientHeight);
  light(at);
}

function maskUnder(event) {
  if (!viewed?.ids || document.body.classList.contains("plain")) return -1;
  const box = stage.getBoundingClientRect(), { width, height } = all;
  const x = Math.floor((event.clientX - box.left) / box.width * width), y = Math.floor((event.clientY - box.top) / box.height * height);
  tip.classList.toggle("top", y > 0.7 * height);
  return x >= 0 && y >= 0 && x < width && y < height ? viewed.ids[x * height + y] - 1 : -1;
}

function hover(at) {
  hovered = at;
  light(hovered >= 0 ? hovered : selected);
}

stage.addEventListener("pointermove", event => { if (event.pointerType !== "touch") hover(maskUnder(event)); });
stage.addEventListener("pointerleave", () => hover(-1));
stage.addEventListener("click", event => { const at = maskUnder(event); select(at === selected ? -1 : at); });
options.addEventListener("pointermove", event => hover(Number(event.target.closest("li")?.dataset.mask ?? -1)));
options.addEventListener("pointerleave", () => hover(-1));
options.addEventListener("click", event => { const option = event.target.closest("li"); if (option) select(Number(option.dataset.mask)); });

function stepMask(step) {
  const { shown } = viewed;
  if (!shown.length) return;
  const place = shown.indexOf(selected);
  select(place < 0 ? shown.at(step > 0 ? 0 : -1) : shown[Math.min(Math.max(place + step, 0), shown.length - 1)]);
}

const go = number => { if (number >= 0 && number < index.photographs) location.replace(`#${number + 1}`); };
byId("previous").addEventListener("click", () => go(viewed.number - 1));
byId("next").addEventListener("click", () => go(viewed.number + 1));

const KEYS = {
  ArrowRight: () => go(viewed.number + 1),
  ArrowLeft: () => go(viewed.number - 1),
  ArrowDown: () => stepMask(1),
  ArrowUp: () => stepMask(-1),
  Home: () => stepMask(-Infinity),
  End: () => stepMask(Infinity),
  Escape: () => selected >= 0 ? select(-1) : (location.hash = ""),
};

document.addEventListener("keydown", event => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.target.tagName === "INPUT") return;
  if (event.key.toLowerCase() === "m") byId("masks").click();
  if (!viewed || !(event.key in KEYS)) return;
  event.preventDefault();
  KEYS[event.key]();
});

// ---- Rejected inputs -------------------------------------------------------------------------------------

let rejectedBlocks = 0;
const endOfRejected = byId("more-rejected");

async function moreRejected() {
  if (rejectedBlocks * index.block >= index.rejected) return;
  const rows = await load(`rejected-${padded(rejectedBlocks)}.js`);
  rejectedBlocks++;
  byId("rejected-inputs").querySelector("tbody").append(...rows.map(([key, kind, stage_, message]) => element("tr", {},
    Object.assign(element("th", {}, element("bdi", {}, key)), { scope: "row" }),
    element("td", {}, element("code", {}, kind)), element("td", {}, message, " ", element("small", {}, `(${stage_})`)))));
}

new IntersectionObserver(async (entries, observer) => {
  if (!entries.at(-1).isIntersecting) return;
  observer.unobserve(endOfRejected);  // and anew afterwards: the end may still be in sight
  try {
    await moreRejected();
    if (rejectedBlocks * index.block < index.rejected) observer.observe(endOfRejected);
  } catch (error) {
    endOfRejected.textContent = `${error.message}; load the page again.`;
  }
}, { rootMargin: "600px" }).observe(endOfRejected);

// ---- Which of the three is shown -------------------------------------------------------------------------

function route() {
  const hash = location.hash.slice(1), number = Number(hash) - 1, leaves = viewed?.number;
  const photograph = hash !== "" && Number.isInteger(number) && number >= 0 && number < index.photographs;
  const shows = photograph ? "photograph" : hash === "rejected" ? "rejected" : "photographs";
  for (const [id, name] of [["photographs", "photographs"], ["photograph", "photograph"], ["rejected-inputs", "rejected"]]) {
    byId(id).hidden = name !== shows;
  }
  document.body.dataset.shows = shows;
  for (const [id, current_] of [["to-photographs", shows !== "rejected"], ["to-rejected", shows === "rejected"]]) {
    byId(id).toggleAttribute("aria-current", current_);
  }
  if (photograph) {
    if (leaves === undefined) scrollTo(0, 0);
    view(number).catch(error => {
      if (wanted !== number) return;
      gone.hidden = false;
      gone.textContent = error.message;
    });
    if (leaves === undefined) stage.focus({ preventScroll: true });
    return;
  }
  viewed = null;
  wanted = -1;
  if (shows === "rejected") return;
  layOut();
  if (leaves !== undefined) {
    openWindowOf(leaves);
    focusTile(leaves);
  }
}

function openWindowOf(number) {
  const start = Math.floor(number / WINDOW) * WINDOW;
  if (start === base) return;
  base = start;
  tiles.forEach(tile => tile.item.remove());
  tiles.clear();
}

byId("goto").addEventListener("change", event => {
  const number = Math.min(Math.max(Math.trunc(event.target.value) || 1, 1), index.photographs) - 1;
  openWindowOf(number);
  focusTile(number);
});

byId("masks").addEventListener("change", event => {
  document.body.classList.toggle("plain", !event.target.checked);
  if (viewed) select(-1);
});

async function loadAhead() {
  for (let block = 0; block < Math.min(AHEAD, Math.ceil(index.photographs / index.block)); block++) {
    await loadBlock(block).catch(() => {});
    soon(tellShown);
  }
}

const hundredths = value => `≥ ${(value / UNITS).toFixed(3)}`, percent = value => `${(100 * value / UNITS).toFixed(1)} %`;
setUpSlider("predicted-iou", "iou", index.least.predicted_iou, hundredths);
setUpSlider("stability", "stability", index.least.stability_score, hundredths);
setUpSlider("smallest", "smallest", 0, percent);
setUpSlider("largest", "largest", 0, percent);
byId("to-photographs").append(element("span", {}, index.photographs.toLocaleString("en")));
byId("to-rejected").append(element("span", {}, index.rejected.toLocaleString("en")));
byId("goto").max = index.photographs;
byId("goto").parentElement.hidden = index.photographs <= 500;
if (matchMedia("(max-width: 44rem)").matches) document.querySelector(".filters").open = false;
addEventListener("hashchange", route);
addEventListener("scroll", () => soon(layOut), { passive: true });
addEventListener("resize", () => soon(layOut));
route();
loadAhead();
