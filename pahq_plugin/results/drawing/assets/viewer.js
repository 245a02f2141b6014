/* A viewer: connects its controls, one or two drawings, legend and table. */

const LARGE = 300; // number of edges above which a circuit is filtered at first
const STRONGEST_OF_LARGE = 200;

class Viewer {
  constructor(root) {
    const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
    this.part = Object.fromEntries([...root.querySelectorAll("[data-part]")].map((each) => [each.dataset.part, each]));
    this.circuits = data.circuits.map((each) => new Circuit(each));
    this.figures = [...root.querySelectorAll("figure")];
    const svgs = this.figures.map((figure) => figure.querySelector("svg"));
    this.pictures = svgs.map((svg) => new Picture(svg));
    this.tooltips = this.figures.map((figure) => new Tooltip(figure.querySelector(".tooltip")));
    this.camera = new Camera(svgs);
    this.navigations = this.pictures.map((picture) => new Navigation(picture, this.camera));
    this.table = new EdgeTable(this.part.edges, (label) => this.lightLabel(label), (label) => this.revealLabel(label));
    this.offerCircuits(data.compare);
    this.listen();
    if (this.circuits.length) this.choose();
  }

  offerCircuits(compare) {
    const options = this.circuits.map(({ data }, index) => element("option", { value: index }, data.name));
    this.part.first.replaceChildren(...options);
    this.part.choices.hidden = this.circuits.length < 2;
    this.offerSecond();
    if (compare && this.part.second.querySelector("option[value='1']")) this.part.second.value = "1";
  }

  /** Offers to compare with other circuits that have the same nodes. */
  offerSecond() {
    const wanted = this.part.second.value;
    const first = Number(this.part.first.value);
    const others = [...this.circuits.keys()].filter((index) => index !== first && this.circuits[first].fits(this.circuits[index]));
    this.part.second.replaceChildren(
      element("option", { value: "" }, "nothing"),
      ...others.map((index) => element("option", { value: index }, this.circuits[index].data.name)),
    );
    this.part.second.value = others.includes(Number(wanted || -1)) ? wanted : "";
  }

  listen() {
    const { part } = this;
    const on = (name, type, act) => part[name].addEventListener(type, act);
    on("first", "change", () => { this.offerSecond(); this.choose(); });
    on("second", "change", () => this.choose());
    for (const name of ["strongest", "least", "all-nodes"]) on(name, "input", () => this.filterSoon());
    on("every", "click", () => { part.strongest.value = this.most; part.least.value = 0; this.filter(); });
    on("closer", "click", () => this.camera.zoom(STEP));
    on("farther", "click", () => this.camera.zoom(1 / STEP));
    on("fit", "click", () => this.camera.fit());
    on("save", "click", () => this.save());
    part.strongest.form.addEventListener("submit", (event) => event.preventDefault());
    this.pictures.forEach(({ svg }, index) => {
      svg.addEventListener("pointerover", (event) => this.pointed(index, event.target, { x: event.clientX, y: event.clientY }));
      svg.addEventListener("pointerleave", () => this.pointed(index, null));
      svg.addEventListener("focusin", ({ target }) => this.pointed(index, target, beside(target)));
      svg.addEventListener("focusout", () => this.pointed(index, null));
      svg.addEventListener("keydown", ({ key }) => key === "Escape" && this.tooltips[index].hide());
    });
  }

  /** Redraws the chosen circuits. */
  choose() {
    const { part } = this;
    this.chosen = [part.first.value, part.second.value].filter((value) => value !== "").map((value) => this.circuits[value]);
    this.counts = this.chosen.length > 1 ? common(...this.chosen) : null;
    this.most = Math.max(...this.chosen.map(({ parts }) => parts.length));
    this.sizes = new SizeScale(this.chosen, Number(part.least.max));
    part.least.disabled = !this.sizes.useful;
    part.least.value = 0;
    part.strongest.max = this.most;
    part.strongest.value = this.most > LARGE ? STRONGEST_OF_LARGE : this.most;
    part.measure.textContent = `|${this.chosen[0].data.measure}|`;
    this.figures.forEach((figure, index) => this.caption(figure, index));
    this.chosen.forEach((circuit, index) => this.pictures[index].build(circuit, this.membership()));
    part.legend.replaceChildren(...legendOf(this.chosen, this.counts));
    this.sayComparison();
    this.camera.fit(this.pictures[0].box);
    this.filter();
  }

  caption(figure, index) {
    const circuit = this.chosen[index];
    figure.hidden = !circuit;
    if (!circuit) return;
    const name = (this.counts ? `${"AB"[index]}: ` : "") + circuit.data.name;
    figure.querySelector("[data-part='name']").textContent = name;
    figure.querySelector("[data-part='subtitle']").textContent = circuit.data.subtitle;
    figure.querySelector("svg").setAttribute("aria-label", `Drawing of the circuit ${name}`);
  }

  /** Returns a function from an edge's label to which circuits contain it; "" for one circuit. */
  membership() {
    const [first, second] = this.chosen;
    if (!second) return () => "";
    return (label) => (!second.labels.has(label) ? "only-a" : first.labels.has(label) ? "both" : "only-b");
  }

  sayComparison() {
    this.part.comparison.hidden = !this.counts;
    if (!this.counts) return;
    const { both, onlyA, onlyB, jaccard } = this.counts;
    this.part.comparison.textContent = `${counted(both, "edge")} in both, ${whole(onlyA)} only in A, `
      + `${whole(onlyB)} only in B: Jaccard index ${jaccard.toFixed(2)} (edges in both over edges in either).`;
  }

  /** Filters at most once per frame, however fast a slider moves. */
  filterSoon() {
    this.waiting ??= requestAnimationFrame(() => this.filter());
  }

  filter() {
    cancelAnimationFrame(this.waiting);
    this.waiting = null;
    const { part } = this;
    const least = this.sizes.size(Number(part.least.value));
    const strongest = part.strongest.value === "" ? Infinity : Math.max(0, Number(part.strongest.value));
    const shown = this.chosen.map((circuit) => circuit.filtered({ strongest, least }));
    part["least-shown"].textContent = digits(least);
    shown.forEach((parts, index) => {
      this.pictures[index].show(parts, part["all-nodes"].checked);
      this.navigations[index].refresh();
      this.tooltips[index].hide();
    });
    part.status.textContent = this.statusOf(shown);
    const rows = listed(shown);
    this.table.fill(rows, columnsOf(rows, this.chosen, this.membership()));
  }

  statusOf(shown) {
    const counts = shown.map((parts, index) => {
      const of = this.counts ? ` of ${"AB"[index]}` : "";
      return `${whole(parts.length)} of ${counted(this.chosen[index].parts.length, "edge")}${of}`;
    });
    const hint = this.most > LARGE && Number(this.part.strongest.value) === STRONGEST_OF_LARGE
      ? ` Large circuits start with their strongest ${STRONGEST_OF_LARGE} edges; “Show all” adds the rest.` : "";
    return `Showing ${counts.join(" and ")}.${hint}`;
  }

  /** Highlights the element under the pointer or with the focus in every panel, and describes it. */
  pointed(index, drawn, place) {
    const target = drawn?.closest(".node, .edge")?.target;
    this.pictures.forEach((picture, other) => {
      picture.light(target && other < this.chosen.length ? picture.counterparts(target) : [], Boolean(target));
    });
    if (!target) return this.tooltips[index].hide();
    return this.tooltips[index].show(described(target, this.chosen[index].data.measure), place);
  }

  lightLabel(label) {
    for (const picture of this.pictures.slice(0, this.chosen.length)) {
      const edge = label === null ? undefined : picture.edgeOf(label);
      picture.light(edge ? [edge] : [], label !== null);
    }
  }

  revealLabel(label) {
    const edge = this.pictures[0].edgeOf(label);
    if (edge) this.camera.reveal(this.pictures[0].nodes.get(edge.destination).node);
  }

  save() {
    const svgs = this.chosen.map((_, index) => this.pictures[index].svg);
    const names = this.figures.slice(0, svgs.length).map((figure) => figure.querySelector("strong").textContent);
    download(savedPicture(svgs, names), "circuit.svg");
  }
}

function beside(drawn) {
  const { right, top, height } = drawn.getBoundingClientRect();
  return { x: right - 8, y: top + height / 2 };
}

for (const root of document.querySelectorAll("[data-viewer]")) new Viewer(root);
