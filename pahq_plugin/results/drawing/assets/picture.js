/* One circuit drawn into one svg element: nodes, edges, and highlights. */

const NODE_HEIGHT = 30;
const PORTS = { Q: -0.28, K: 0, V: 0.28 }; // where inputs enter a head, in widths from its centre
const DASHES = { both: "none", "only-a": "9 4", "only-b": "2 4" };
const NEGATIVE_DASH = "6 4";
const LEAST_HALF = 120; // half the width of narrow circuits, so that edges have room to bow
const CROWDED = 250; // number of edges above which lines are translucent

class Picture {
  constructor(svg) {
    this.svg = svg;
    this.nodes = new Map();
    this.edges = [];
  }

  /**
   * Builds every node and edge of a circuit; `show` then makes some of them visible.
   * `membership` maps an edge's label to its class when two circuits are compared.
   */
  build(circuit, membership) {
    this.circuit = circuit;
    const nodes = [...circuit.nodes.values()];
    this.box = boundsOf(nodes);
    this.nodes = new Map(nodes.map((node) => [node.name, this.builtNode(node)]));
    this.edges = groups(circuit.parts, membership).map((group) => this.builtEdge(group));
    const slots = circuit.parts.some((part) => part.slot);
    this.svg.classList.toggle("slots", slots);
    this.svg.replaceChildren(
      svgElement("g", { class: "bands" }, ...bands(nodes, this.box)),
      svgElement("g", { class: "edge-layer" }, ...this.edges.map(({ drawn }) => drawn).reverse()),
      svgElement("g", { class: "node-layer" }, ...[...this.nodes.values()].map(({ drawn }) => drawn)),
    );
  }

  builtNode(node) {
    const text = svgElement("text", { class: "name", y: 4.5 }, node.label);
    const drawn = svgElement("g", {
      class: `node ${node.kind}`, role: "img", transform: `translate(${node.x} ${node.y})`,
    }, nodeShape(node.kind, node.width), text);
    if (node.kind === "head") {
      for (const [slot, place] of Object.entries(PORTS)) {
        drawn.append(svgElement("text", { class: "slot", x: place * node.width, y: 12 }, slot));
      }
    }
    const built = { node, drawn, incoming: [], outgoing: [] };
    drawn.target = built;
    return built;
  }

  builtEdge(group) {
    const hit = svgElement("path", { class: "hit" });
    const line = svgElement("path", { class: "line" });
    const drawn = svgElement("g", { class: `edge ${group.membership}`, role: "img" }, hit, line);
    const built = { ...group, drawn, hit, line, shown: [] };
    drawn.target = built;
    return built;
  }

  /** Shows the given parts of edges, and the nodes at their ends. */
  show(parts, allNodes) {
    const chosen = new Set(parts);
    for (const { incoming, outgoing } of this.nodes.values()) incoming.length = outgoing.length = 0;
    for (const edge of this.edges) {
      edge.shown = edge.parts.filter((part) => chosen.has(part));
      edge.drawn.toggleAttribute("hidden", !edge.shown.length);
      if (!edge.shown.length) continue;
      this.nodes.get(edge.source).outgoing.push(edge);
      this.nodes.get(edge.destination).incoming.push(edge);
      this.restyle(edge);
    }
    for (const { drawn, incoming, outgoing } of this.nodes.values()) {
      const used = incoming.length + outgoing.length > 0;
      drawn.classList.toggle("unused", !used);
      drawn.toggleAttribute("hidden", !used && !allNodes);
    }
    this.name();
    this.svg.style.setProperty("--edge-opacity", parts.length > CROWDED ? 0.55 : 0.9);
    this.light([]);
  }

  /** Labels what is shown, for screen readers. */
  name() {
    const shown = this.edges.filter((edge) => edge.shown.length);
    for (const target of [...this.nodes.values(), ...shown]) {
      target.drawn.setAttribute("aria-label", spoken(described(target, this.circuit.data.measure)));
    }
  }

  /** Gives an edge the look of its strongest shown part. */
  restyle(edge) {
    const [strongest] = edge.shown;
    const path = curve(this.nodes.get(edge.source).node, this.nodes.get(edge.destination).node, edge.shown);
    edge.hit.setAttribute("d", path);
    edge.line.setAttribute("d", path);
    edge.line.setAttribute("stroke-width", strongest.width);
    edge.line.setAttribute("stroke", strongest.colour);
    const dash = DASHES[edge.membership] ?? (strongest.effect < 0 ? NEGATIVE_DASH : "none");
    edge.line.setAttribute("stroke-dasharray", dash);
  }

  /** Highlights some nodes and edges, and fades the others. */
  light(targets, fade = targets.length > 0) {
    for (const drawn of this.svg.querySelectorAll(".lit")) drawn.classList.remove("lit");
    this.svg.classList.toggle("lighting", fade);
    for (const target of targets) for (const drawn of this.around(target)) drawn.classList.add("lit");
  }

  /** Elements to highlight with a node (its edges and neighbours) or with an edge (its ends). */
  around(target) {
    const edges = target.node ? [...target.incoming, ...target.outgoing] : [target];
    const ends = edges.flatMap(({ source, destination }) => [source, destination]);
    const nodes = ends.map((name) => this.nodes.get(name).drawn);
    return [...(target.node ? [target.drawn] : []), ...nodes, ...edges.map(({ drawn }) => drawn)];
  }

  /** The node or edges here that correspond to `target`, which may be in another drawing. */
  counterparts(target) {
    if (target.node) return this.nodes.has(target.node.name) ? [this.nodes.get(target.node.name)] : [];
    return this.edges.filter((edge) => edge.shown.length
      && edge.source === target.source && edge.destination === target.destination);
  }

  /** The edge that holds the part with this label, if it is shown. */
  edgeOf(label) {
    return this.edges.find((edge) => edge.shown.some((part) => part.label === label));
  }
}

/** Groups parts with the same nodes and membership into one line each; strongest first. */
function groups(parts, membership) {
  const found = new Map();
  for (const part of parts) {
    const kind = membership(part.label);
    const key = JSON.stringify([part.source, part.destination, kind]);
    if (!found.has(key)) {
      found.set(key, { source: part.source, destination: part.destination, membership: kind, parts: [] });
    }
    found.get(key).parts.push(part);
  }
  return [...found.values()];
}

function boundsOf(nodes) {
  const left = Math.min(...nodes.map(({ x, width }) => x - width / 2));
  const right = Math.max(...nodes.map(({ x, width }) => x + width / 2));
  const middle = nodes.length ? (left + right) / 2 : 0;
  const half = Math.max(LEAST_HALF, nodes.length ? (right - left) / 2 : 0) + 64;
  const top = Math.min(0, ...nodes.map(({ y }) => y)) - NODE_HEIGHT;
  return { x: middle - half, y: top, width: 2 * half, height: NODE_HEIGHT - top };
}

/** A pale band with its name behind the heads and the MLP of each block. */
function bands(nodes, box) {
  const heights = new Map();
  for (const { block, y } of nodes) {
    if (block === null) continue;
    const [top, bottom] = heights.get(block) ?? [y, y];
    heights.set(block, [Math.min(top, y), Math.max(bottom, y)]);
  }
  return [...heights].flatMap(([block, [top, bottom]]) => [
    svgElement("rect", {
      class: "band", x: box.x + 4, y: top - 26, width: box.width - 8, height: bottom - top + 52, rx: 8,
    }),
    svgElement("text", { class: "band-name", x: box.x + 14, y: top - 10 }, `block ${block}`),
  ]);
}

/** The outline of a node, different for each kind. */
function nodeShape(kind, width) {
  const [x, y] = [width / 2, NODE_HEIGHT / 2];
  if (kind === "input" || kind === "output") {
    const tip = kind === "input" ? y : -y; // a house, upside down or upright
    const slope = x - 12;
    return svgElement("path", {
      class: "shape",
      d: `M${-x} ${-tip}H${x}V${tip * 0.3}L${slope} ${tip}H${-slope}L${-x} ${tip * 0.3}Z`,
    });
  }
  const rounding = { head: y, mlp: 1, other: 6 }[kind];
  return svgElement("rect", { class: "shape", x: -x, y: -y, width, height: NODE_HEIGHT, rx: rounding });
}

/**
 * The path of an edge from the top of its source to the bottom of its destination, into the slots of
 * its parts. A steep edge that skips rows bows to one side, around the nodes in between.
 */
function curve(source, destination, parts) {
  const drift = destination.x - source.x;
  const slots = parts.filter((part) => part.slot).map((part) => PORTS[part.slot] * destination.width);
  const startX = source.x + limited(drift * 0.1, source.width * 0.3);
  const startY = source.y - NODE_HEIGHT / 2;
  const endX = destination.x
    + (slots.length ? slots.reduce((a, b) => a + b) / slots.length : limited(-drift * 0.1, destination.width * 0.3));
  const endY = destination.y + NODE_HEIGHT / 2;
  const rise = startY - endY;
  const steep = Math.abs(drift) < 45;
  const skips = steep && rise > (drift ? 3 : 5) * NODE_HEIGHT; // no nodes between two MLPs
  const side = source.kind === "head" ? Math.sign(source.x || -1) : source.block % 2 ? 1 : -1;
  const bow = skips ? side * Math.min(36 + rise * 0.16, 150) : 0;
  const pull = Math.max(rise * 0.45, 20);
  const points = [startX + bow, startY - pull, endX + bow, endY + pull, endX, endY];
  return `M${startX.toFixed(1)} ${startY.toFixed(1)}C${points.map((n) => n.toFixed(1)).join(" ")}`;
}

function limited(value, most) {
  return Math.max(-most, Math.min(most, value));
}
