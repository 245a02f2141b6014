/* Elements, numbers and words. Text is always inserted as text, never as markup. */

const SVG_NAMESPACE = "http://www.w3.org/2000/svg";

function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function svgElement(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG_NAMESPACE, tag), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** A number with three significant digits, as in the terminal's tables. */
function digits(number) {
  return String(Number(number.toPrecision(3))).replace("-", "−");
}

function whole(number) {
  return number.toLocaleString("en");
}

/** "1 edge", "1,500 edges" */
function counted(number, word) {
  return `${whole(number)} ${word}${number === 1 ? "" : "s"}`;
}

/** An edge's label with a proper arrow. */
function arrowed(label) {
  return label.replace("->", " → ");
}
