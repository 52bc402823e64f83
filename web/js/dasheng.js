// Draws what a Dasheng node found and warns of below it, from its UI output, and a table of takes with a player.
// The app's own progress text goes when a run ends. Without this file every node works, and shows less.
import { app } from "../../../scripts/app.js";

const NAME = "dasheng_results";
const WARNING = "\u26a0";
const EVENT = "dasheng.warning";
const PICK = "DashengPickTake";
// Pixels.
const LINE = 17;
const ROW = 27;
const PLAYER = 44;
const MOST = 360;
const STYLE = `
.dasheng-results { font: 12px/17px sans-serif; color: var(--input-text, #ddd); overflow: auto; user-select: text; }
.dasheng-results div { white-space: pre-wrap; overflow-wrap: anywhere; padding: 0 4px; }
.dasheng-results .warning { color: var(--warning-background, #f0b040); }
.dasheng-results table { width: 100%; border-collapse: collapse; }
.dasheng-results th, .dasheng-results td { text-align: left; font-weight: normal; padding: 0 4px; height: 26px; }
.dasheng-results tr.playing td { background: var(--comfy-input-bg, #222); }
.dasheng-results button { font: inherit; color: inherit; background: var(--comfy-input-bg, #222); padding: 1px 8px;
  border: 1px solid var(--border-color, #4e4e4e); border-radius: 4px; cursor: pointer; }
.dasheng-results audio { width: 100%; height: 32px; display: block; margin-top: 6px; }`;

// Node -> what is drawn below it; box of a subgraph -> node in it -> what it said. A node that is gone takes it along.
const panels = new WeakMap();
const inside = new WeakMap();

function isOurs(node) {
  return /Dasheng/.test(node.comfyClass ?? "");
}

function make(tag, text, className) {
  const element = document.createElement(tag);
  // Foreign text is text, whatever it holds.
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function panelOf(node) {
  let panel = panels.get(node);
  // An older app makes the widgets of a box anew when it has read the graph.
  if (panel && node.widgets?.some((widget) => widget.name === NAME)) return panel;
  const element = make("div", undefined, "dasheng-results");
  panel = { element, height: 0, player: null };
  const height = () => panel.height;
  const widget = node.addDOMWidget(NAME, NAME, element, {
    serialize: false,
    hideOnZoom: true,
    margin: 4,
    getMinHeight: height,
    getMaxHeight: height,
  });
  widget.serialize = false;
  // A click on a button is none on the node, which the app would move.
  for (const kind of ["pointerdown", "mousedown", "dblclick"]) element.addEventListener(kind, (event) => event.stopPropagation());
  panels.set(node, panel);
  return panel;
}

function draw(node, lines, rows) {
  if (!lines.length && !rows.length && !panels.has(node)) return;
  const panel = panelOf(node);
  const first = rows.find((row) => row.file);
  panel.player?.pause();
  panel.player = first && Object.assign(make("audio"), { controls: true, preload: "metadata", src: urlOf(first) });
  panel.element.replaceChildren();
  let height = 0;
  const letters = Math.max(node.size[0] - 40, 120) / 6.4;
  for (const line of lines) {
    panel.element.append(make("div", line, line.startsWith(WARNING) ? "warning" : ""));
    height += LINE * Math.max(1, Math.ceil(line.length / letters));
  }
  // One take needs no table: the lines above say which.
  if (rows.length && node.comfyClass !== PICK) {
    panel.element.append(table(node, panel, rows));
    height += ROW * (rows.length + 1);
  }
  if (panel.player) {
    panel.element.append(panel.player);
    height += PLAYER;
  }
  panel.height = height && Math.min(height + 12, MOST);
  // Nodes 2.0 asks the element, the classic canvas the widget.
  panel.element.style.maxHeight = `${MOST}px`;
  const [width, least] = node.computeSize();
  if (least > node.size[1]) node.setSize([Math.max(width, node.size[0]), least]);
  node.setDirtyCanvas?.(true, true);
}

function table(node, panel, rows) {
  const body = make("tbody");
  const head = make("tr");
  for (const name of ["take", "seed", "length", "loudness", "", ""]) head.append(make("th", name));
  body.append(head);
  for (const row of rows) {
    const line = make("tr");
    for (const value of [row.number, row.seed, row.length, row.loudness]) line.append(make("td", String(value)));
    const play = make("td");
    const keep = make("td");
    if (row.file) play.append(playButton(panel, line, row));
    keep.append(keepButton(node, row));
    line.append(play, keep);
    body.append(line);
  }
  const all = make("table");
  all.append(body);
  return all;
}

function urlOf(row) {
  return app.api.apiURL(`/view?${new URLSearchParams(row.file)}`);
}

function playButton(panel, line, row) {
  const { player } = panel;
  const url = urlOf(row);
  if (player.src.endsWith(url)) line.className = "playing";
  const button = make("button", "\u25b6");
  button.title = `play take ${row.number}`;
  button.onclick = () => {
    const again = line.className === "playing";
    if (again && !player.paused) return player.pause();
    if (!again) {
      for (const other of line.parentElement.children) other.className = "";
      line.className = "playing";
      player.src = url;
    }
    // A file that is gone since the server was started again cannot be played.
    player.play().catch(() => {});
  };
  return button;
}

function keepButton(node, row) {
  const button = make("button", "keep");
  button.title = `set number ${row.number} in the connected Dasheng Pick Take; without one, copy the seed`;
  button.onclick = async () => {
    const number = pickBehind(node)?.widgets.find((widget) => widget.name === "number");
    if (number) {
      number.value = row.number;
      number.callback?.(row.number);
      app.graph.setDirtyCanvas(true, true);
    } else {
      await navigator.clipboard?.writeText(row.seed);
    }
    button.textContent = number ? "kept" : "seed copied";
    setTimeout(() => (button.textContent = "keep"), 1500);
  };
  return button;
}

// The Dasheng Pick Take that picks by number among the takes of a node: behind it, or behind what it gets them from.
function pickBehind(node) {
  const queue = [node, node.getInputNode?.(0)];
  const seen = new Set();
  while (queue.length) {
    const next = queue.shift();
    if (!next || seen.has(next)) continue;
    seen.add(next);
    const picks = next.widgets?.find((widget) => widget.name === "pick");
    if (next.comfyClass === PICK && picks?.value === "number") return next;
    // What changes takes and leaves their order.
    const hands = seen.size <= 2 || /^(Reroute|DashengConvert|DashengFinish|DashengTakes)$/.test(next.type);
    if (hands) (next.outputs ?? []).forEach((_, slot) => queue.push(...(next.getOutputNodes(slot) ?? [])));
  }
  return null;
}

function show(node, output) {
  const lines = (output?.dasheng_text ?? []).flatMap((text) => String(text).split("\n"));
  tell(node, lines, (output?.dasheng_takes ?? []).flatMap((text) => JSON.parse(text)));
}

// At the node, and at the box of the subgraphs that it is in.
function tell(node, lines, rows) {
  draw(node, lines, rows);
  const box = boxAround(node);
  if (!box) return;
  const said = inside.get(box) ?? new Map();
  inside.set(box, said.set(node, lines));
  const all = [...new Set([...said.values()].flat())];
  draw(box, [...all.filter((line) => line.startsWith(WARNING)), ...all.filter((line) => !line.startsWith(WARNING))], []);
}

function boxAround(node) {
  const nodes = graphs().flatMap((graph) => graph.nodes ?? graph._nodes);
  let box = null;
  for (let graph = node.graph; graph && graph !== graphs()[0]; graph = box?.graph) {
    box = nodes.find((each) => each.subgraph === graph);
  }
  return box;
}

function graphs() {
  const root = app.rootGraph ?? app.graph.rootGraph ?? app.graph;
  return [root, ...(root.subgraphs?.values() ?? [])];
}

// The node of an id such as 3, or 7:3 for node 3 of the subgraph that node 7 is.
function nodeOf(id) {
  let [graph] = graphs();
  let node;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(Number(part));
    graph = node?.subgraph;
  }
  return node;
}

app.registerExtension({
  name: "dasheng.results",
  setup() {
    document.head.append(make("style", STYLE));
    app.api.addEventListener(EVENT, ({ detail }) => {
      const node = nodeOf(detail.node);
      if (node) tell(node, detail.text.split("\n"), []);
    });
    // A node of another pack has no output of ours that would take its warnings away.
    app.api.addEventListener("executing", ({ detail }) => {
      const node = detail && nodeOf(detail.node ?? detail);
      if (node && !isOurs(node) && panels.has(node)) tell(node, [], []);
    });
  },
  nodeCreated(node) {
    // At once: a canvas that shows nodes as they were made does not see a later widget.
    if (!isOurs(node)) return;
    node.previewMediaType ??= "image"; // Also of one that takes a VIDEO.
    panelOf(node);
    const before = node.onExecuted;
    node.onExecuted = function (output) {
      before?.call(this, output);
      // Of a node that is remembered an older server sends nothing.
      if (output) show(this, output);
    };
  },
  loadedGraphNode(node) {
    if (node.subgraph?.nodes.some(isOurs)) panelOf(node);
  },
  // After another tab, a file, or an entry of the history was opened.
  onNodeOutputsUpdated(outputs) {
    for (const graph of graphs()) {
      for (const node of graph.nodes ?? graph._nodes) {
        const output = outputs?.[graph.isRootGraph === false ? `${graph.id}:${node.id}` : node.id];
        if (output && isOurs(node)) show(node, output);
      }
    }
  },
});
