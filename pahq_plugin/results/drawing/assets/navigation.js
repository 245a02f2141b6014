/* Keyboard navigation of a drawing: one tab stop, arrow keys between nodes and between a node's edges. */

const DIRECTIONS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

class Navigation {
  constructor(picture, camera) {
    this.picture = picture;
    this.camera = camera;
    picture.svg.addEventListener("keydown", (event) => {
      if (this.pressed(event)) event.preventDefault();
    });
    picture.svg.addEventListener("focusin", ({ target }) => target.target && this.stopAt(target));
  }

  /** Moves the tab stop to a visible node if its present element is hidden. */
  refresh() {
    const seen = [...this.picture.nodes.values()].map(({ drawn }) => drawn).filter((drawn) => !drawn.hasAttribute("hidden"));
    const kept = this.stop?.isConnected && !this.stop.hasAttribute("hidden");
    if (!kept && seen.length) this.stopAt(seen[0]);
  }

  stopAt(drawn) {
    if (drawn === this.stop) return; // removing the tab stop, even briefly, would lose the focus
    this.stop?.removeAttribute("tabindex");
    this.stop = drawn;
    drawn.setAttribute("tabindex", "0");
  }

  go(target) {
    if (!target) return;
    this.stopAt(target.drawn);
    target.drawn.focus({ preventScroll: true });
    this.camera.reveal(target.node ?? this.picture.nodes.get(target.destination).node);
  }

  /** Handles a key; returns whether it had a meaning here. */
  pressed({ key, shiftKey, target, ctrlKey, altKey, metaKey }) {
    if (ctrlKey || altKey || metaKey) return false;
    const direction = DIRECTIONS[key];
    if (key === "+" || key === "=") this.camera.zoom(STEP);
    else if (key === "-") this.camera.zoom(1 / STEP);
    else if (key === "0") this.camera.fit();
    else if (direction && shiftKey) this.camera.move(...direction.map((part) => part * this.camera.view.width * 0.1));
    else if (!target.target) return false;
    else if (target.target.node) return this.pressedOnNode(key, direction, target.target);
    else return this.pressedOnEdge(key, direction, target.target);
    return true;
  }

  pressedOnNode(key, direction, target) {
    if (key === "Enter" || key === " ") {
      this.origin = target;
      this.go(edgesOf(target)[0]);
    } else if (direction) this.go(this.neighbour(target.node, direction));
    else return false;
    return true;
  }

  pressedOnEdge(key, direction, edge) {
    const ends = [edge.source, edge.destination].map((name) => this.picture.nodes.get(name));
    const origin = ends.includes(this.origin) ? this.origin : ends[0];
    if (key === "Escape") this.go(origin);
    else if (key === "Enter" || key === " ") this.go(ends[0] === origin ? ends[1] : ends[0]);
    else if (direction) {
      const edges = edgesOf(origin);
      const step = direction[0] + direction[1];
      this.go(edges[(edges.indexOf(edge) + step + edges.length) % edges.length]);
    } else return false;
    return true;
  }

  /** The nearest node in a direction: in the same row, or in the nearest row with a visible node. */
  neighbour(from, [right, down]) {
    const distance = ({ node }) => (right ? Math.abs(node.x - from.x) : Math.abs(node.y - from.y) * 1e6 + Math.abs(node.x - from.x));
    return [...this.picture.nodes.values()]
      .filter(({ drawn }) => !drawn.hasAttribute("hidden"))
      .filter(({ node }) => (right
        ? node.y === from.y && Math.sign(node.x - from.x) === right
        : Math.sign(node.y - from.y) === down))
      .sort((a, b) => distance(a) - distance(b))[0];
  }
}

/** The edges of a node that are shown, strongest first. */
function edgesOf({ incoming, outgoing }) {
  const size = (edge) => Math.abs(edge.shown[0].effect);
  return [...outgoing, ...incoming].sort((a, b) => size(b) - size(a));
}
