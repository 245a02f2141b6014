/* Names and numbers of a node or an edge: in a box beside it, and as its label for screen readers. */

const LONGEST_LIST = 8;
const KINDS = {
  head: "attention head", mlp: "MLP", input: "input", output: "output", other: "node",
};

/** Describes a node or an edge: a heading and rows of cells. */
function described(target, measure) {
  return target.node ? describedNode(target, measure) : describedEdge(target, measure);
}

function describedEdge(edge, measure) {
  const rows = edge.shown.map((part) => [
    arrowed(part.label), `${measure} ${digits(part.effect)}`, ...decidedOn(part, measure),
  ]);
  const heading = rows.length === 1 ? "" : `${edge.source} → ${edge.destination}: ${counted(rows.length, "edge")}`;
  return { heading, rows: shortened(rows) };
}

/** What an edge was decided on; nothing for scores, which are estimates, not decisions. */
function decidedOn(part, measure) {
  return measure === "score" ? [] : [part.exact ? "decided on FP32" : "screened"];
}

function describedNode({ node, incoming, outgoing }, measure) {
  const count = (edges) => edges.reduce((sum, edge) => sum + edge.shown.length, 0);
  const strongest = (edges) => edges.flatMap((edge) => edge.shown)
    .sort((a, b) => Math.abs(b.effect) - Math.abs(a.effect))
    .map((part) => [arrowed(part.label), `${measure} ${digits(part.effect)}`]);
  const few = (rows) => shortened(rows, 3);
  return {
    heading: `${node.name}${node.kind === "mlp" ? "" : `, ${KINDS[node.kind]}`}: ${count(incoming)} in, ${count(outgoing)} out`,
    rows: [...few(strongest(outgoing)), ...few(strongest(incoming))],
  };
}

function shortened(rows, most = LONGEST_LIST) {
  const more = rows.length - most;
  return more > 0 ? [...rows.slice(0, most), [`and ${whole(more)} more`]] : rows;
}

/** One line of text for `aria-label`. */
function spoken({ heading, rows }) {
  return [heading, ...rows.map((row) => row.join(", "))].filter(Boolean).join("; ");
}

class Tooltip {
  constructor(box) {
    this.box = box;
  }

  /** Shows a description beside a point of the window, inside the stage. */
  show({ heading, rows }, { x, y }) {
    const cells = rows.map((row) => element("tr", {}, ...row.map((cell) => element("td", {}, cell))));
    this.box.replaceChildren(
      ...(heading ? [element("div", { class: "heading" }, heading)] : []),
      element("table", {}, element("tbody", {}, ...cells)),
    );
    this.box.hidden = false;
    const stage = this.box.parentElement.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = this.box;
    const left = Math.max(0, Math.min(x - stage.left + 14, stage.width - width - 8));
    const below = y - stage.top + 18;
    const top = below + height > stage.height ? y - stage.top - height - 14 : below;
    this.box.style.transform = `translate(${Math.round(left)}px, ${Math.round(Math.max(0, top))}px)`;
  }

  hide() {
    this.box.hidden = true;
  }
}
