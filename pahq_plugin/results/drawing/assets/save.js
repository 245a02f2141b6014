/* Save the drawings as shown, as one SVG file without a style sheet. */

const KEPT_STYLES = [
  "fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "opacity", "display",
  "font-family", "font-size", "font-weight", "text-anchor", "transform",
];

function savedPicture(svgs, titles) {
  const gap = 24;
  const width = svgs.reduce((sum, svg) => sum + svg.clientWidth + gap, -gap);
  const height = svgs[0].clientHeight + 32;
  const whole = svgElement("svg", { xmlns: SVG_NAMESPACE, width, height, viewBox: `0 0 ${width} ${height}` },
    svgElement("rect", { width, height, fill: "#ffffff" }));
  let left = 0;
  svgs.forEach((svg, index) => {
    whole.append(svgElement("text", { x: left + 8, y: 20, "font-family": "sans-serif", "font-size": 14 }, titles[index]));
    const copy = styledCopy(svg);
    for (const [name, value] of Object.entries({ x: left, y: 32, width: svg.clientWidth, height: svg.clientHeight })) {
      copy.setAttribute(name, value);
    }
    whole.append(copy);
    left += svg.clientWidth + gap;
  });
  return new XMLSerializer().serializeToString(whole);
}

/** A copy of the visible elements, each with its computed style. */
function styledCopy(svg) {
  const copy = svg.cloneNode(true);
  const originals = svg.querySelectorAll("*");
  const left = [];
  copy.querySelectorAll("*").forEach((made, index) => {
    const style = getComputedStyle(originals[index]);
    if (style.display === "none" || made.classList.contains("hit")) left.push(made);
    for (const name of KEPT_STYLES) {
      const value = style.getPropertyValue(name);
      if (value === "none" && name !== "fill") made.removeAttribute(name);
      else made.setAttribute(name, value);
    }
    for (const name of ["class", "role", "tabindex", "aria-label"]) made.removeAttribute(name);
  });
  for (const made of left) made.remove();
  for (const name of ["class", "style", "role", "tabindex", "aria-label", "aria-describedby"]) copy.removeAttribute(name);
  return copy;
}

function download(text, name) {
  const address = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
