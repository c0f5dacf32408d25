// What Gradio's components do not do: files of the API with its key, two clips in step, questions, shortcuts.
// Texts of users get here only as attributes and text nodes, never as HTML.

const KEY = "daifuku-key";
const recallKey = () => localStorage.getItem(KEY) || "";
const keepKey = (key) => (localStorage.setItem(KEY, key.trim()), key.trim());

const rollSeed = () => String(crypto.getRandomValues(new Uint32Array(1))[0]);
const lengthNote = (frames, fps) => {
  const length = Number(frames) / Number(fps);
  return Number.isFinite(length) ? `${length.toFixed(2)} s at ${Number(fps)} frames per second` : "";
};

async function ask(path) {
  const key = recallKey();
  for (let tries = 0; ; tries++) {
    const answer = await fetch(path, { headers: key ? { Authorization: `Bearer ${key}` } : {} });
    if (answer.ok) return answer;
    if (answer.status !== 429 || tries > 4) throw new Error(`the server answered ${answer.status}`);
    await new Promise((done) => setTimeout(done, 1000 * Number(answer.headers.get("Retry-After") || 1)));
  }
}

const pathOf = (id, variant) => `/v1/videos/${encodeURIComponent(id)}/content?variant=${variant}`;

// Without a key the browser asks for the file itself, and seeks in it; a key only fits into a request of our own.
const blobs = new Map();
async function sourceOf(id, variant) {
  const path = pathOf(id, variant);
  if (!recallKey()) return path;
  if (!blobs.has(path)) blobs.set(path, ask(path).then(async (answer) => URL.createObjectURL(await answer.blob())));
  return blobs.get(path).catch(() => (blobs.delete(path), ""));
}

// Elements of their own, because Gradio removes what it did not write itself.
class Media extends HTMLElement {
  static observedAttributes = ["video"];
  connectedCallback() { this.show(); }
  attributeChangedCallback() { if (this.isConnected) this.show(); }
  async show() {
    const id = this.getAttribute("video");
    if (id === this.shown) return;
    this.shown = id;
    const made = this.make();
    const source = await sourceOf(id, this.variant);
    if (this.shown !== id) return;
    made.src = source;
    const room = this.shadowRoot || this.attachShadow({ mode: "open" });
    const style = document.createElement("style");
    style.textContent = ":host{display:block}video,img{display:block;width:100%;height:100%;object-fit:contain;" +
      "border-radius:inherit}";
    room.replaceChildren(style, made);
  }
}

class Clip extends Media {
  variant = "video";
  make() {
    const video = document.createElement("video");
    Object.assign(video, { controls: true, loop: true, muted: true, autoplay: true, playsInline: true });
    video.setAttribute("aria-label", this.getAttribute("label") || "");
    const fit = () => (video.style.imageRendering = video.videoWidth < 200 ? "pixelated" : "auto");
    video.addEventListener("loadedmetadata", fit);
    return video;
  }
  get player() { return this.shadowRoot && this.shadowRoot.querySelector("video"); }
}

class Still extends Media {
  variant = "thumbnail";
  make() {
    const image = document.createElement("img");
    image.alt = "";
    image.loading = "lazy";
    return image;
  }
}

// A preview is some frames side by side: they are shown one after the other.
class Preview extends HTMLElement {
  static observedAttributes = ["image"];
  connectedCallback() {
    this.pane = document.createElement("div");
    this.pane.style.cssText = "width:100%;height:100%;transform:scale(1.07)";
    (this.shadowRoot || this.attachShadow({ mode: "open" })).replaceChildren(this.pane);
    this.frame = 0;
    this.clock = setInterval(() => this.turn(), 160);
    this.show();
  }
  disconnectedCallback() { clearInterval(this.clock); }
  attributeChangedCallback() { if (this.isConnected) this.show(); }
  show() {
    const strip = new Image();
    strip.onload = () => {
      const frame = Number(this.getAttribute("width")) / Number(this.getAttribute("height"));
      this.number = Math.max(1, Math.round(strip.naturalWidth / strip.naturalHeight / frame));
      // A cell of the latent is four pixels of the strip; without a blur it would look like a mosaic.
      const cell = (4 * this.clientHeight) / strip.naturalHeight;
      this.pane.style.filter = `blur(${(0.2 * cell).toFixed(1)}px)`;
      this.pane.style.backgroundImage = `url(${strip.src})`;
      this.pane.style.backgroundSize = `${100 * this.number}% 100%`;
      this.turn();
    };
    strip.src = this.getAttribute("image");
  }
  turn() {
    this.frame = (this.frame + 1) % (this.number || 1);
    this.pane.style.backgroundPosition = this.number > 1 ? `${(100 * this.frame) / (this.number - 1)}% 0` : "0 0";
  }
}

// One button and one slider for both clips of a comparison; the first keeps the time.
class Pair extends HTMLElement {
  connectedCallback() {
    const room = this.shadowRoot || this.attachShadow({ mode: "open" });
    const style = document.createElement("style");
    style.textContent = ":host{display:flex;gap:12px;align-items:center}input{flex:1;accent-color:var(--accent)}" +
      "button{font:inherit;font-weight:600;min-width:84px;min-height:40px;border:0;border-radius:10px;color:#fff;" +
      "background:var(--accent);cursor:pointer}button:focus-visible{outline:3px solid var(--ring);outline-offset:2px}";
    const button = document.createElement("button");
    const slider = document.createElement("input");
    Object.assign(slider, { type: "range", min: 0, max: 1, step: 0.001, value: 0 });
    slider.setAttribute("aria-label", "Time of both videos");
    room.replaceChildren(style, button, slider);
    this.playing = true;
    const label = () => (button.textContent = this.playing ? "Pause" : "Play");
    button.onclick = () => { this.playing = !this.playing; label(); };
    slider.oninput = () => {
      this.playing = false;
      label();
      for (const each of this.players) each.currentTime = slider.value * (each.duration || 0);
    };
    label();
    const step = () => {
      if (!this.isConnected) return;
      this.keepStep(slider);
      requestAnimationFrame(step);
    };
    step();
  }
  get players() {
    const clips = this.parentElement ? [...this.parentElement.querySelectorAll("studio-clip")] : [];
    return clips.map((clip) => clip.player).filter((player) => player && player.readyState > 0);
  }
  keepStep(slider) {
    const [first, second] = this.players;
    if (!first || !second) return;
    for (const each of [first, second]) {
      each.controls = false;
      if (this.playing === each.paused) this.playing ? each.play().catch(() => {}) : each.pause();
    }
    const time = second.duration ? first.currentTime % second.duration : 0;
    if (this.playing && Math.abs(second.currentTime - time) > 0.08) second.currentTime = time;
    if (this.playing && first.duration) slider.value = first.currentTime / first.duration;
  }
}

for (const [name, made] of [["studio-clip", Clip], ["studio-still", Still], ["studio-preview", Preview], ["studio-pair", Pair]]) {
  if (!customElements.get(name)) customElements.define(name, made);
}

function keep(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

const saving = {
  "save": async (id) => keep(await (await ask(pathOf(id, "video"))).blob(), `${id}.mp4`),
  "save-record": async (id) => keep(await (await ask(`/v1/videos/${encodeURIComponent(id)}`)).blob(), `${id}.json`),
};

function sure(question, yes) {
  const dialog = document.createElement("dialog");
  dialog.className = "sure";
  const said = document.createElement("p");
  said.textContent = question;
  const buttons = document.createElement("div");
  for (const [value, label] of [["no", "Keep it"], ["yes", yes]]) {
    const button = document.createElement("button");
    Object.assign(button, { textContent: label, className: value, onclick: () => dialog.close(value) });
    buttons.append(button);
  }
  dialog.append(said, buttons);
  (document.querySelector(".gradio-container") || document.body).append(dialog);
  dialog.showModal();
  return new Promise((done) => {
    dialog.onclose = () => (dialog.remove(), done(dialog.returnValue === "yes"));
  });
}

// Of a piece of HTML with buttons: what each of them asks for.
function listen(element, trigger, actions) {
  element.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-do]");
    if (!button) return;
    const { do: wish, id, number } = button.dataset;
    if (saving[wish]) {
      button.disabled = true;
      await saving[wish](id).catch(() => {});
      button.disabled = false;
    } else if (actions.includes(wish)) {
      if (wish === "remove" && !(await sure("Delete this video and its files for good?", "Delete"))) return;
      trigger(wish, { id, number });
      if (["open", "replay", "vary"].includes(wish)) reveal("stage");
      if (["edit", "example"].includes(wish)) reveal("form");
    }
  });
}

// On a phone what was asked for may be far away.
function reveal(id) {
  const place = document.getElementById(id);
  if (!place || innerWidth > 860) return;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  setTimeout(() => place.scrollIntoView({ behavior: still ? "auto" : "smooth" }), 150);
}

// While the server is away the page says so; when it is back the page begins anew, with the prompt that was typed.
const DRAFT = "daifuku-draft", LOOK_EVERY_MS = 3000;
const promptField = () => document.querySelector("#prompt textarea");
let away = null;
async function lookAfterServer() {
  const isThere = await fetch("/livez", { cache: "no-store" }).then((answer) => answer.ok, () => false);
  if (!isThere && !away) {
    away = document.createElement("p");
    Object.assign(away, { className: "away", role: "status", textContent: "The server does not answer. Waiting for it…" });
    (document.querySelector(".gradio-container") || document.body).append(away);
  } else if (isThere && away) {
    sessionStorage.setItem(DRAFT, promptField()?.value || "");
    location.reload();
    return;
  }
  setTimeout(lookAfterServer, LOOK_EVERY_MS);
}
setTimeout(lookAfterServer, LOOK_EVERY_MS);

function restoreDraft() {
  const draft = sessionStorage.getItem(DRAFT), field = promptField();
  if (!draft) return;
  if (!field || !document.querySelector(".model.is-ready")) return void setTimeout(restoreDraft, 200);
  sessionStorage.removeItem(DRAFT);
  if (field.value) return;
  field.value = draft;
  field.dispatchEvent(new Event("input", { bubbles: true }));
}
restoreDraft();

addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  const generate = document.getElementById("generate");
  if (!generate || generate.disabled) return;
  event.preventDefault();
  // What was typed last has to have reached Gradio.
  setTimeout(() => generate.click(), 60);
}, true);
addEventListener("click", (event) => {
  if (event.target.closest && event.target.closest("#generate")) reveal("stage");
});
