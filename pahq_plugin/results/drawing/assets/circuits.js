/* Circuits as data: edges that pass a filter, and edges that two circuits share. */

class Circuit {
  constructor(data) {
    this.data = data;
    this.nodes = new Map(data.nodes.map((node) => [node.name, node]));
    this.parts = data.edges.flatMap(({ source, destination, parts }) =>
      parts.map((part) => ({ ...part, source, destination })));
    this.parts.sort((a, b) => Math.abs(b.effect) - Math.abs(a.effect) || (a.label < b.label ? -1 : 1));
    this.labels = new Set(this.parts.map((part) => part.label));
  }

  /** The strongest edges with an effect of at least `least`, strongest first. */
  filtered({ strongest, least }) {
    return this.parts.slice(0, strongest).filter((part) => Math.abs(part.effect) >= least);
  }

  /** Whether two drawings can be compared side by side: the same nodes in the same places. */
  fits(other) {
    const nodes = other.data.nodes;
    return nodes.length === this.nodes.size && nodes.every(({ name, x, y }) => {
      const node = this.nodes.get(name);
      return node && node.x === x && node.y === y;
    });
  }
}

/** Counts the edges that two circuits share. Two empty circuits are equal: their Jaccard index is 1. */
function common(first, second) {
  const both = first.parts.filter((part) => second.labels.has(part.label)).length;
  const onlyA = first.parts.length - both;
  const onlyB = second.parts.length - both;
  const all = both + onlyA + onlyB;
  return { both, onlyA, onlyB, jaccard: all ? both / all : 1 };
}

/** Maps steps of a slider to magnitudes of effects: 0 to 0, the others evenly on a logarithmic scale. */
class SizeScale {
  constructor(circuits, steps) {
    const sizes = circuits.flatMap(({ parts }) => parts.map(({ effect }) => Math.abs(effect))).filter(Boolean);
    this.steps = steps;
    this.low = sizes.reduce((a, b) => Math.min(a, b), Infinity);
    this.high = sizes.reduce((a, b) => Math.max(a, b), 0);
    this.useful = this.low < this.high;
  }

  size(step) {
    if (step === 0 || !this.useful) return 0;
    if (step === this.steps) return this.high;
    return this.low * (this.high / this.low) ** ((step - 1) / (this.steps - 1));
  }
}
