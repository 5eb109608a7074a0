// The photo under its classes' or objects' colors, drawn in the browser: what is sent is the photo and a map whose
// values are rows of the legend or numbers of objects, so that opacity, pointing and hiding cost the server nothing.
const part = (name) => element.querySelector("." + name);
const canvas = part("picture"), tip = part("tip"), legend = part("legend"), opacity = part("opacity");
const split = part("split"), divider = part("divider"), search = part("search");
const single = part("single"), each = part("each");
const SEARCHED = 12; // classes from which on the legend has a search field
const touch = matchMedia("(hover: none)").matches;
const brush = canvas.getContext("2d");
const layer = document.createElement("canvas");
// {photo, map, border, regions, classes, objects, width, height}: the map has the index of each pixel's region. A region is a
// class, or an object: {row of the legend, name, text, own color or null}; the one of pixels of no object is null.
let scene = null;
let focus = -1; // the row that is singled out
let near = 0; // the object under the pointer
let shown = 0; // results that were shown
const hidden = new Set();
let newest = 0;

async function loadImage(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  return image;
}

function valuesOf(image, bytes) {
  const { width, height } = image;
  layer.width = width;
  layer.height = height;
  const reader = layer.getContext("2d", { willReadFrequently: true });
  reader.drawImage(image, 0, 0);
  const pixels = reader.getImageData(0, 0, width, height).data;
  const values = new Uint32Array(width * height);
  for (let i = 0; i < values.length; i++)
    for (let byte = 0; byte < bytes; byte++) values[i] |= pixels[4 * i + byte] << (8 * byte);
  return values;
}

function bordersOf(map, width) {
  const border = new Uint8Array(map.length);
  for (let i = 1; i < map.length; i++) {
    if (i % width && map[i] !== map[i - 1]) border[i] = border[i - 1] = 1;
    if (i >= width && map[i] !== map[i - width]) border[i] = border[i - width] = 1;
  }
  return border;
}

function regionsOf({ classes, objects }) {
  if (!objects) return classes.map(({ name, text }, row) => ({ row, name, text, color: null }));
  return [null, ...objects.map((found) => ({ ...found, name: classes[found.row].name }))];
}

function colorOf({ row, color }) {
  return (single.checked && color) || scene.classes[row].color;
}

function colors() {
  const { map, border, regions, width, height } = scene;
  const pixels = new ImageData(width, height);
  const words = new Uint32Array(pixels.data.buffer); // alpha, blue, green, red from the highest byte down
  const full = Math.round(2.55 * opacity.value);
  const looks = regions.map((region, number) => {
    if (!region) return [0, 0];
    const { row } = region, [red, green, blue] = colorOf(region);
    const strong = row === focus || (near === number && near > 0);
    const strength = strong ? Math.max(full, 150) : hidden.has(row) ? 0 : focus < 0 ? full : full * 0.2;
    const color = (blue << 16) | (green << 8) | red;
    const line = strength && (focus < 0 || row === focus) ? 255 : strength;
    return [(strength << 24) | color, (line << 24) | color];
  });
  for (let i = 0; i < map.length; i++) words[i] = looks[map[i]][border[i]];
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

function legendRow({ name, color, share, text, pixels, count }, row) {
  const item = document.createElement("li"), button = document.createElement("button");
  button.type = "button";
  button.append(...["i", "span", "em", "u"].map((tag) => document.createElement(tag)));
  const [swatch, title, percent] = button.children;
  button.style.setProperty("--color", "rgb(" + color.join(",") + ")");
  button.style.setProperty("--share", 100 * share + "%");
  swatch.style.background = "var(--color)";
  button.classList.toggle("things", Boolean(count));
  title.textContent = name;
  const number = count ? count.toLocaleString("en") + (count === 1 ? " object, " : " objects, ") : "";
  button.title = name + ": " + number + pixels.toLocaleString("en") + " pixels";
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

// With one color per object, the swatch of a class has several colors.
function markThings() {
  legend.classList.toggle("many", single.checked && !each.hidden);
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
  const number = scene.map[y * scene.width + x], region = scene.regions[number];
  if (!region) return leave();
  tip.children[0].style.background = "rgb(" + colorOf(region).join(",") + ")";
  tip.children[1].textContent = region.name;
  tip.children[2].textContent = region.text;
  pointAtObject(scene.objects ? number : 0);
  tip.hidden = false;
  const left = event.clientX - box.left, top = event.clientY - box.top;
  tip.style.left = Math.min(left + 14, box.width - tip.offsetWidth) + "px";
  tip.style.top = (top > tip.offsetHeight + 14 ? top - tip.offsetHeight - 10 : top + 18) + "px";
  for (const [i, item] of [...legend.children].entries()) item.firstChild.classList.toggle("here", i === region.row);
}

function pointAtObject(number) {
  if (number === near) return;
  near = number;
  paint();
}

function leave() {
  tip.hidden = true;
  pointAtObject(0);
  for (const item of legend.children) item.firstChild.classList.remove("here");
}

function showFailure(text) {
  part("failure").hidden = !text;
  part("failure").querySelector("p").textContent = text || "";
}

function describe({ name, classes, objects, heading }) {
  const main = classes.slice(0, 5).map((found) => found.name + " " + found.text);
  return (objects ? heading + " in " : "Segmentation of ") + name + (main.length ? ": " + main.join(", ") : "");
}

function hint(objects) {
  const shown = objects ? "object for its score and area" : "class there";
  if (touch) return "Tap the image for the " + shown + "; tap a class to hide or show it.";
  if (objects) return "Point at an object for its score and area; click a class to hide or show it.";
  return "Point at the image or at a class to single it out; click a class to hide or show it.";
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
    const values = valuesOf(map, value.objects ? 3 : 1), { classes, objects } = value;
    const border = bordersOf(values, width), regions = regionsOf(value);
    scene = { photo, map: values, border, regions, classes, objects, width, height };
    focus = -1;
    near = 0;
    hidden.clear();
    if (!objects) classes.forEach(({ name }, row) => name === "background" && hidden.add(row)); // the photo is seen there
    each.hidden = !objects || !objects.some(({ color }) => color);
    canvas.width = width;
    canvas.height = height;
    canvas.style.width = "min(100%, " + (72 * width) / height + "vh)";
    canvas.setAttribute("aria-label", describe(value));
    part("caption").textContent = value.caption;
    showAbout(value);
    search.value = "";
    search.hidden = value.classes.length < SEARCHED;
    part("heading").textContent = value.heading;
    part("toggles").hidden = !classes.length;
    part("hint").textContent = classes.length ? hint(objects) : "";
    legend.replaceChildren(...value.classes.map(legendRow));
    markThings();
    mark();
    paint();
  }
  // On a phone the result is below the settings. The example at the start does not scroll the page.
  if (value && shown++ && innerWidth < 900) element.scrollIntoView({ behavior: "smooth", block: "start" });
}

opacity.oninput = split.oninput = paint;
single.onchange = () => {
  markThings();
  paint();
};
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
