// The page: panes side by side under one camera, the buttons, the keys, and the hook for tests.
import * as THREE from "three";
import { OrbitControls } from "three/addons/controls/OrbitControls.js";
import { FOV, MODES, Stage } from "./stage.js";

const ELEVATION = 15; // degrees above the horizon, as in the turntable film
const MARGIN = 1.1;
const STEP = Math.PI / 24; // of an arrow key
const POLL = 500; // milliseconds between two looks at a training

const element = (id) => document.getElementById(id);
const panes = element("panes");
const modeButtons = [...document.querySelectorAll("[data-mode]")];

function fail(text) {
  element("message").textContent = text;
  element("message").hidden = false;
}

function bytes(id) {
  const text = element(id)?.textContent;
  if (!text) return undefined;
  element(id).remove(); // its memory is needed
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const out = new Uint8Array(binary.length);
  for (let i = 0; i < out.length; i++) out[i] = binary.charCodeAt(i);
  return out;
}

/** Nested fields as pairs of a name and a text. */
function flat(value, name = "") {
  if (value === null || value === undefined || value === "") return [];
  if (typeof value !== "object") return [[name, typeof value === "number" ? String(+value.toFixed(4)) : String(value)]];
  if (Array.isArray(value)) {
    const between = Array.isArray(value[0]) ? " to " : ", ";
    return value.length ? [[name, value.map((item) => flat(item)[0]?.[1]).join(between)]] : [];
  }
  return Object.entries(value).flatMap(([key, item]) => flat(item, name ? `${name} ${key}` : key));
}

/** What people ask for first; the other fields follow in their own order. */
const FIRST = { prompt: null, seed: null, prior: null, reward: null, scores: null, n_splats: null };

function fillInfo(assets, stages) {
  assets.forEach((asset, i) => {
    const list = document.createElement("dl");
    for (const [name, text] of flat({ ...FIRST, ...asset.facts, ...stages[i].counts })) {
      list.append(
        Object.assign(document.createElement("dt"), { textContent: name.replaceAll("_", " ") }),
        Object.assign(document.createElement("dd"), { textContent: text }),
      );
    }
    element("info").append(Object.assign(document.createElement("h2"), { textContent: asset.name }), list);
  });
}

/** A grid of cells as square as can be. */
function layOut(count) {
  const { clientWidth, clientHeight } = panes;
  let columns = 1;
  let largest = 0;
  for (let n = 1; n <= count; n++) {
    const side = Math.min(clientWidth / n, clientHeight / Math.ceil(count / n));
    if (side > largest) [columns, largest] = [n, side];
  }
  panes.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  panes.style.gridAutoRows = "minmax(0, 1fr)";
}

async function start() {
  const assets = JSON.parse(element("assets").textContent);
  const stages = [];
  for (const [i, asset] of assets.entries()) {
    const figure = document.createElement("figure");
    const canvas = document.createElement("canvas");
    const caption = Object.assign(document.createElement("figcaption"), { textContent: asset.name });
    figure.append(canvas, caption);
    panes.append(figure);
    canvas.addEventListener("webglcontextlost", () => fail("The graphics driver gave up. Reload the page."));
    stages.push(new Stage(canvas, { ...asset, splat: bytes(`splat-${i}`), mesh: bytes(`mesh-${i}`) }, () => request()));
  }

  const camera = new THREE.PerspectiveCamera(FOV, 1, 0.01, 100);
  const controls = new OrbitControls(camera, panes);
  Object.assign(controls, { enableDamping: true, autoRotateSpeed: -3, minDistance: 0.05, maxDistance: 50 });
  const home = () => {
    const distance = MARGIN / Math.sin((FOV * Math.PI) / 360);
    camera.position.setFromSphericalCoords(distance, ((90 - ELEVATION) * Math.PI) / 180, 0);
    controls.target.set(0, 0, 0);
    controls.update();
  };
  const follow = () => stages.forEach((stage) => stage.follow(camera));
  controls.addEventListener("change", follow);

  // Frames are drawn while something moves or is still being sorted, and not otherwise.
  let requested = 0;
  let last = 0;
  const request = () => {
    requested ||= requestAnimationFrame(frame);
  };
  function frame(now) {
    requested = 0;
    if (controls.update(Math.min((now - last) / 1000, 0.1)) || controls.autoRotate) request();
    last = now;
    for (const stage of stages) if (stage.dirty) stage.draw();
  }
  controls.addEventListener("start", request);
  new ResizeObserver(() => {
    layOut(stages.length);
    stages.forEach((stage) => stage.invalidate());
  }).observe(panes);

  function setMode(mode) {
    stages.forEach((stage) => stage.show(mode));
    for (const button of modeButtons) {
      button.setAttribute("aria-pressed", button.dataset.mode === mode);
    }
  }
  function setBackground(colour) {
    stages.forEach((stage) => stage.setBackground(colour));
    for (const figure of panes.children) figure.classList.toggle("transparent", colour === "transparent");
  }
  function setRotate(on) {
    controls.autoRotate = on;
    element("rotate").setAttribute("aria-pressed", on);
    request();
  }
  function toggleInfo() {
    element("info").hidden = !element("info").hidden;
    element("toggle-info").setAttribute("aria-pressed", !element("info").hidden);
  }
  async function screenshot() {
    const ratio = Math.min(devicePixelRatio, 2);
    const [{ clientWidth: width, clientHeight: height }] = panes.querySelectorAll("canvas");
    const columns = getComputedStyle(panes).gridTemplateColumns.split(" ").length;
    const rows = Math.ceil(stages.length / columns);
    const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
    const sheet = Object.assign(document.createElement("canvas"), { width: columns * w, height: rows * h });
    for (const [i, stage] of stages.entries()) {
      const view = await stage.picture(w, h);
      sheet.getContext("2d").drawImage(view, (i % columns) * w, Math.floor(i / columns) * h);
    }
    const blob = await new Promise((resolve) => sheet.toBlob(resolve));
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: `${document.title}.png` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
  /** Moves the camera around the target: radians to the right and up, and a factor of the distance. */
  function orbit(right, up, nearer = 1) {
    const place = new THREE.Spherical().setFromVector3(camera.position.clone().sub(controls.target));
    place.theta += right;
    place.phi = Math.min(Math.max(place.phi - up, 0.01), Math.PI - 0.01);
    place.radius = Math.min(Math.max(place.radius * nearer, controls.minDistance), controls.maxDistance);
    camera.position.setFromSpherical(place).add(controls.target);
    controls.update();
  }

  function enableModes() {
    for (const button of modeButtons) button.disabled = !stages.some((stage) => stage.has(button.dataset.mode));
  }
  enableModes();
  for (const button of modeButtons) {
    button.addEventListener("click", () => setMode(button.dataset.mode));
  }
  const background = element("background");
  background.addEventListener("change", () => setBackground(background.value));
  element("rotate").addEventListener("click", () => setRotate(!controls.autoRotate));
  element("reset").addEventListener("click", home);
  element("screenshot").addEventListener("click", screenshot);
  element("toggle-info").addEventListener("click", toggleInfo);
  const keys = {
    1: () => setMode("splats"),
    2: () => setMode("points"),
    3: () => setMode("mesh"),
    " ": () => setRotate(!controls.autoRotate),
    r: home,
    b: () => {
      background.selectedIndex = (background.selectedIndex + 1) % background.length;
      setBackground(background.value);
    },
    s: screenshot,
    i: toggleInfo,
    ArrowLeft: () => orbit(-STEP, 0),
    ArrowRight: () => orbit(STEP, 0),
    ArrowUp: () => orbit(0, STEP),
    ArrowDown: () => orbit(0, -STEP),
    "+": () => orbit(0, 0, 0.9),
    "=": () => orbit(0, 0, 0.9),
    "-": () => orbit(0, 0, 1 / 0.9),
  };
  document.addEventListener("keydown", (event) => {
    const inControl = event.target.closest("select, button") && [" ", "Enter", "ArrowUp", "ArrowDown"].includes(event.key);
    const action = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action || inControl || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    action();
  });

  home();
  setBackground(background.value);
  const loaded = await Promise.allSettled(
    stages.map(async (stage, i) => {
      try {
        await stage.load();
      } catch (error) {
        const caption = panes.children[i].querySelector("figcaption");
        caption.classList.add("wrong");
        caption.textContent = `${assets[i].name}: cannot be shown (${error.message ?? error}). Make the page again.`;
        throw error;
      }
    }),
  );
  fillInfo(assets, stages);
  setMode(stages[0].mode);
  follow();
  for (const stage of stages) await stage.picture(64, 64); // compiles and sorts

  Object.assign(window.psdgs, {
    modes: MODES,
    counts: stages.map((stage) => stage.counts),
    setMode,
    setBackground,
    orbit,
    setCamera: (viewmat, fov) => stages.forEach((stage) => stage.place(viewmat, fov)),
    camera: (pane = 0) => [...stages[pane].camera.position, ...stages[pane].camera.quaternion],
    /** PNG of a pane as a data URL. */
    picture: async (pane, width, height) => (await stages[pane].picture(width, height)).toDataURL("image/png"),
  });
  if (assets[0].live) {
    const show = async (splat) => {
      await stages[0].replace(splat);
      setMode(stages[0].mode);
      enableModes();
      window.psdgs.counts = [stages[0].counts];
    };
    window.psdgs.live = watch(show, panes.querySelector("figcaption"));
  }
  // The other assets are shown all the same.
  for (const { reason } of loaded) if (reason) throw reason;
}

/** Asks the server of a training for its state, again and again, until it is gone. */
async function watch(show, caption) {
  const ask = async (path, options) => {
    const reply = await fetch(path, options);
    if (!reply.ok) throw new Error(`${path}: ${reply.status}`);
    return reply;
  };
  const told = (state) => {
    caption.textContent = [state.title, state.status].filter(Boolean).join(": ");
    document.title = state.title;
    element("pause").textContent = state.paused ? "Go on" : "Pause";
    element("pause").setAttribute("aria-pressed", state.paused);
    element("curves").innerHTML = state.curves; // our server's own, which has escaped what is not
    element("curves").hidden = !state.curves;
  };
  const post = async (path) => told(await (await ask(path, { method: "POST" })).json());
  element("live").hidden = false;
  element("pause").addEventListener("click", () => post(element("pause").ariaPressed === "true" ? "go" : "pause"));
  element("keep").addEventListener("click", () => post("keep"));
  let shown = 0;
  for (;;) {
    try {
      const state = await (await ask("state")).json();
      told(state);
      if (state.version !== shown) {
        await show(new Uint8Array(await (await ask("splats")).arrayBuffer()));
        shown = state.version;
      }
    } catch (error) {
      caption.textContent += " (the run has ended)";
      element("live").hidden = true;
      return error;
    }
    await new Promise((resolve) => setTimeout(resolve, POLL));
  }
}

function hasWebGL() {
  try {
    return Boolean(document.createElement("canvas").getContext("webgl2"));
  } catch {
    return false;
  }
}

window.psdgs = {};
if (hasWebGL()) {
  window.psdgs.ready = start();
  window.psdgs.ready.catch((error) => console.error(error));
} else {
  fail(
    "This page draws with WebGL 2, which this browser does not offer.\n" +
      "Turn on hardware acceleration in its settings, update the graphics driver, or open the page in another browser.",
  );
  window.psdgs.ready = Promise.reject(new Error("no WebGL 2"));
  window.psdgs.ready.catch(() => {});
}
