// A list of any length: only the tiles in sight are in the page, and only those that stay in sight get pictures.
import { ask, picture } from "./asking.js";

const TILE = { width: 116, height: 132 };
const WINDOW = 100; // items a request
const MOST = 2000; // items that are remembered
const REST = 120; // milliseconds after which scrolling counts as over

function words(item) {
  if (item.class) return `✓ ${item.class}`;
  if (item.state === "gone") return "gone";
  if (item.reason === "uid-collision") return "UID used twice";
  if (item.header && item.pixels && item.header !== item.pixels) return `${item.header} or ${item.pixels}?`;
  const guess = item.header || item.pixels;
  return guess ? `${guess}?` : "?";
}

export class List {
  constructor(element, space, onPick) {
    this.element = element;
    this.space = space;
    this.onPick = onPick;
    this.count = 0;
    this.current = -1;
    this.known = new Map(); // place -> item
    this.asked = new Set(); // windows under way
    this.loaded = new Map(); // window -> the generation that it is of
    this.generation = 0;
    this.tiles = new Map(); // place -> tile in the page
    this.spare = [];
    this.timer = 0;
    element.addEventListener("scroll", () => this.draw(), { passive: true });
    new ResizeObserver(() => this.draw()).observe(element);
  }

  columns() {
    return Math.max(1, Math.floor(this.element.clientWidth / TILE.width));
  }

  // The items have changed: ask again for what is in sight, now or later.
  renew(count) {
    this.count = count;
    this.generation += 1;
    this.draw();
  }

  note(item) {
    this.known.set(item.place, item);
    const tile = this.tiles.get(item.place);
    if (tile) this.fill(tile, item.place);
  }

  mark(place) {
    this.current = place;
    const top = Math.floor(place / this.columns()) * TILE.height;
    const { scrollTop, clientHeight } = this.element;
    if (clientHeight && (top < scrollTop || top + TILE.height > scrollTop + clientHeight)) {
      this.element.scrollTop = Math.max(0, top - clientHeight / 3);
    }
    this.draw();
  }

  draw() {
    const columns = this.columns();
    this.space.style.height = `${Math.ceil(this.count / columns) * TILE.height}px`;
    const { scrollTop, clientHeight } = this.element;
    const first = Math.max(0, Math.floor(scrollTop / TILE.height) - 1) * columns;
    const last = Math.min(this.count, (Math.ceil((scrollTop + clientHeight) / TILE.height) + 1) * columns);
    for (const [place, tile] of this.tiles) {
      if (place < first || place >= last) this.take(place, tile);
    }
    for (let place = first; place < last; place += 1) this.put(place, columns);
    this.load(first, last);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.show(), REST);
  }

  take(place, tile) {
    this.tiles.delete(place);
    tile.querySelector("img").removeAttribute("src"); // ends a picture that is still on its way
    tile.hidden = true;
    this.spare.push(tile);
  }

  put(place, columns) {
    let tile = this.tiles.get(place);
    if (!tile) {
      tile = this.spare.pop() ?? this.make();
      tile.hidden = false;
      tile.dataset.place = place;
      this.tiles.set(place, tile);
    }
    tile.style.left = `${(place % columns) * TILE.width}px`;
    tile.style.top = `${Math.floor(place / columns) * TILE.height}px`;
    this.fill(tile, place);
  }

  make() {
    const tile = document.createElement("button");
    tile.type = "button";
    tile.className = "tile";
    tile.tabIndex = -1;
    const image = document.createElement("img");
    image.alt = "";
    image.addEventListener("load", () => tile.classList.add("has-picture"));
    image.addEventListener("error", () => tile.classList.remove("has-picture"));
    tile.append(image, document.createElement("span"));
    tile.addEventListener("click", () => this.onPick(Number(tile.dataset.place)));
    this.space.append(tile);
    return tile;
  }

  fill(tile, place) {
    const item = this.known.get(place);
    tile.classList.toggle("current", place === this.current);
    tile.dataset.state = item?.state ?? "";
    tile.querySelector("span").textContent = item ? words(item) : "…";
    tile.title = item?.reason ?? "";
    tile.setAttribute("aria-label", item ? `Number ${place + 1}: ${item.reason}, ${words(item)}` : `Number ${place + 1}`);
  }

  async load(first, last) {
    for (let start = first - (first % WINDOW); start < last; start += WINDOW) {
      const { generation } = this;
      if (this.loaded.get(start) === generation || this.asked.has(start)) continue;
      this.asked.add(start);
      try {
        const told = await ask(`items/${start}/${WINDOW}`);
        for (const item of told.items) this.note(item);
        clearTimeout(this.timer);
        this.timer = setTimeout(() => this.show(), REST);
        this.loaded.set(start, generation);
        if (this.known.size > MOST) this.forget(start);
      } catch {
        // The page tells of a server that is gone when it next asks how things stand.
      } finally {
        this.asked.delete(start);
        if (this.generation !== generation) this.draw(); // it is out of date, and was not asked for again meanwhile
      }
    }
  }

  forget(near) {
    for (const place of this.known.keys()) {
      if (Math.abs(place - near) > MOST / 2) this.known.delete(place);
    }
    for (const start of this.loaded.keys()) {
      if (Math.abs(start - near) > MOST / 2 - WINDOW) this.loaded.delete(start);
    }
  }

  show() {
    for (const [place, tile] of this.tiles) {
      const image = tile.querySelector("img");
      const item = this.known.get(place);
      if (!item) continue;
      const address = picture(item, -1, 160);
      if (image.getAttribute("src") === address) continue;
      tile.classList.remove("has-picture");
      image.src = address;
    }
  }
}
