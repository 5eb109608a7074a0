// The photo under its classes' colors, drawn in the browser: what is sent is the photo and a map whose gray values
// are rows of the legend, so that opacity, pointing and hiding cost the server nothing.
const part = (name) => element.querySelector("." + name);
const canvas = part("picture"), tip = part("tip"), legend = part("legend"), opacity = part("opacity");
const split = part("split"), divider = part("divider"), search = part("search");
const SEARCHED = 12; // classes from which on the legend has a search field
const touch = matchMedia("(hover: none)").matches;
const brush = canvas.getContext("2d");
const layer = document.createElement("canvas");
let scene = null; // {photo, rows, border, classes, width, height}
let focus = -1; // the row that is singled out
let shown = 0; // results that were shown
const hidden = new Set();
let newest = 0;

async function loadImage(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  return image;
}

function rowsOf(image) {
  const { width, height } = image;
  layer.width = width;
  layer.height = height;
  const reader = layer.getContext("2d", { willReadFrequently: true });
  reader.drawImage(image, 0, 0);
  const pixels = reader.getImageData(0, 0, width, height).data;
  const rows = new Uint8Array(width * height);
  for (let i = 0; i < rows.length; i++) rows[i] = pixels[4 * i];
  return rows;
}

function bordersOf(rows, width) {
  const border = new Uint8Array(rows.length);
  for (let i = 1; i < rows.length; i++) {
    if (i % width && rows[i] !== rows[i - 1]) border[i] = border[i - 1] = 1;
    if (i >= width && rows[i] !== rows[i - width]) border[i] = border[i - width] = 1;
  }
  return border;
}

function colors() {
  const { rows, border, classes, width, height } = scene;
  const pixels = new ImageData(width, height);
  const words = new Uint32Array(pixels.data.buffer); // alpha, blue, green, red from the highest byte down
  const full = Math.round(2.55 * opacity.value);
  const looks = classes.map(({ color: [red, green, blue] }, row) => {
    const strength = row === focus ? Math.max(full, 150) : hidden.has(row) ? 0 : focus < 0 ? full : full * 0.2;
    const color = (blue << 16) | (green << 8) | red;
    const line = strength && (focus < 0 || row === focus) ? 255 : strength;
    return [(strength << 24) | color, (line << 24) | color];
  });
  for (let i = 0; i < rows.length; i++) words[i] = looks[rows[i]][border[i]];
  return pixels;
}

function paint() {
  if (!scene) return;
  brush.drawImage(scene.photo, 0, 0);
  layer.getContext("2d").putImageData(colors(), 0, 0);
  const left = Math.round((scene.width * split.value) / 100); // the photo alone is shown up to here
  const width = scene.width - left;
  if (width > 0) brush.drawImage(layer, left, 0, width, scene.height, left, 0, width, scene.height);
  divider.hidden = split.value === "0";
  divider.style.left = split.value + "%";
}

function legendRow({ name, color, share, text, pixels }, row) {
  const item = document.createElement("li"), button = document.createElement("button");
  button.type = "button";
  button.append(...["i", "span", "em", "u"].map((tag) => document.createElement(tag)));
  const [swatch, title, percent] = button.children;
  button.style.setProperty("--color", "rgb(" + color.join(",") + ")");
  button.style.setProperty("--share", 100 * share + "%");
  swatch.style.background = "var(--color)";
  title.textContent = name;
  button.title = name + ": " + pixels.toLocaleString("en") + " pixels";
  percent.textContent = text;
  button.onpointerenter = button.onfocus = () => point(row);
  button.onpointerleave = button.onblur = () => point(-1);
  button.onclick = () => {
    hidden.has(row) ? hidden.delete(row) : hidden.add(row);
    mark();
    point(-1);
  };
  item.append(button);
  return item;
}

function mark() {
  for (const [row, item] of [...legend.children].entries()) {
    item.firstChild.setAttribute("aria-pressed", String(!hidden.has(row)));
    item.hidden = !item.textContent.toLowerCase().includes(search.value.trim().toLowerCase());
  }
}

function setAll(visible) {
  scene.classes.forEach((_, row) => (visible ? hidden.delete(row) : hidden.add(row)));
  mark();
  paint();
}

function point(row) {
  focus = row;
  paint();
}

function hover(event) {
  if (!scene) return;
  const box = canvas.getBoundingClientRect();
  const x = Math.floor(((event.clientX - box.left) / box.width) * scene.width);
  const y = Math.floor(((event.clientY - box.top) / box.height) * scene.height);
  if (x < 0 || y < 0 || x >= scene.width || y >= scene.height) return leave();
  const row = scene.rows[y * scene.width + x];
  const { name, color, text } = scene.classes[row];
  tip.children[0].style.background = "rgb(" + color.join(",") + ")";
  tip.children[1].textContent = name;
  tip.children[2].textContent = text;
  tip.hidden = false;
  const left = event.clientX - box.left, top = event.clientY - box.top;
  tip.style.left = Math.min(left + 14, box.width - tip.offsetWidth) + "px";
  tip.style.top = (top > tip.offsetHeight + 14 ? top - tip.offsetHeight - 10 : top + 18) + "px";
  for (const [i, item] of [...legend.children].entries()) item.firstChild.classList.toggle("here", i === row);
}

function leave() {
  tip.hidden = true;
  for (const item of legend.children) item.firstChild.classList.remove("here");
}

function showFailure(text) {
  part("failure").hidden = !text;
  part("failure").querySelector("p").textContent = text || "";
}

function describe({ name, classes }) {
  const main = classes.slice(0, 5).map((each) => each.name + " " + each.text);
  return "Segmentation of " + name + ": " + main.join(", ");
}

function showAbout({ about, card }) {
  part("about").textContent = about || "";
  if (!card) return;
  const link = document.createElement("a");
  Object.assign(link, { href: card, target: "_blank", rel: "noopener", textContent: "Model card" });
  part("about").append(" ", link);
}

async function show() {
  const turn = ++newest, value = props.value;
  const there = Boolean(value && value.photo);
  const images = there ? await Promise.all([loadImage(value.photo), loadImage(value.rows)]) : null;
  if (turn !== newest) return; // a later result arrived meanwhile
  part("view").hidden = !there;
  part("empty").hidden = Boolean(value);
  showFailure(value && value.error);
  scene = null;
  tip.hidden = true;
  if (there) {
    const [photo, map] = images, { width, height } = map;
    const rows = rowsOf(map);
    scene = { photo, rows, border: bordersOf(rows, width), classes: value.classes, width, height };
    focus = -1;
    hidden.clear();
    value.classes.forEach(({ name }, row) => name === "background" && hidden.add(row)); // the photo is seen there
    canvas.width = width;
    canvas.height = height;
    canvas.style.width = "min(100%, " + (72 * width) / height + "vh)";
    canvas.setAttribute("aria-label", describe(value));
    part("caption").textContent = value.caption;
    showAbout(value);
    search.value = "";
    search.hidden = value.classes.length < SEARCHED;
    part("hint").textContent = touch
      ? "Tap the image for the class there; tap a class to hide or show it."
      : "Point at the image or at a class to single it out; click a class to hide or show it.";
    legend.replaceChildren(...value.classes.map(legendRow));
    mark();
    paint();
  }
  // On a phone the result is below the settings. The example at the start does not scroll the page.
  if (value && shown++ && innerWidth < 900) element.scrollIntoView({ behavior: "smooth", block: "start" });
}

opacity.oninput = split.oninput = paint;
search.oninput = mark;
canvas.onpointermove = canvas.onpointerdown = hover;
canvas.onpointerleave = (event) => event.pointerType === "mouse" && leave();
part("all").onclick = () => setAll(true);
part("none").onclick = () => setAll(false);
part("save").onclick = () =>
  canvas.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = (props.value.name || "picture") + ".overlay.png";
    link.click();
    URL.revokeObjectURL(link.href);
  });
watch("value", show);
show();
