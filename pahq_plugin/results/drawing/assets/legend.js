/* The legend: meaning of colours, widths, dashes and outlines. */

function legendOf(circuits, counts) {
  return [...(counts ? membershipLegend(counts) : effectLegend(circuits[0].data)), nodeLegend(circuits)];
}

function effectLegend({ measure, legend, negative }) {
  const scale = (title, samples, dash) => legendGroup(title,
    samples.map((sample) => [lineSample(sample.colour, sample.width, dash), digits(sample.effect)]));
  if (!legend.length) return [];
  if (!negative.length) return [scale(titled(measure), legend, "none")];
  return [
    scale(`Positive ${measure}`, legend, "none"),
    scale(`Negative ${measure}, dashed`, negative, NEGATIVE_DASH),
  ];
}

function membershipLegend({ both, onlyA, onlyB }) {
  const entry = (kind, text) => [lineSample(`var(--${kind})`, 3, DASHES[kind]), text];
  return [legendGroup("Edges, wider for larger effects", [
    entry("both", `in both (${whole(both)})`),
    entry("only-a", `only in A (${whole(onlyA)})`),
    entry("only-b", `only in B (${whole(onlyB)})`),
  ])];
}

function nodeLegend(circuits) {
  const used = new Set(circuits.flatMap(({ data }) => data.nodes.map(({ kind }) => kind)));
  const kinds = Object.keys(KINDS).filter((kind) => used.has(kind));
  return legendGroup("Nodes", kinds.map((kind) => [nodeSample(kind), KINDS[kind]]));
}

function legendGroup(title, entries) {
  const items = entries.map(([sample, text]) => element("li", {}, sample, text));
  return element("div", {}, element("span", { class: "title" }, title), element("ul", {}, ...items));
}

function lineSample(colour, width, dash) {
  const line = svgElement("path", { d: "M2 7H42", "stroke-width": width, "stroke-dasharray": dash, fill: "none" });
  line.style.stroke = colour;
  return svgElement("svg", { width: 44, height: 14, "aria-hidden": "true" }, line);
}

function nodeSample(kind) {
  return svgElement("svg", { width: 34, height: 20, viewBox: "-27 -17 54 34", "aria-hidden": "true" },
    svgElement("g", { class: `node ${kind}` }, nodeShape(kind, 50)));
}
