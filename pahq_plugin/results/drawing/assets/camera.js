/* The visible part of the drawings: zoom and pan, the same in all panels. */

const LARGEST_SCALE = 1.25; // pixels per unit in the fitted view, so that small circuits are not blown up
const SMALLEST_SCALE = 0.6; // tall circuits get a tall drawing rather than tiny names
const MOST_ZOOM = 12;
const STEP = 1.3;
const LEGIBLE_SCALE = 0.75; // below it the smallest letters are hidden

class Camera {
  constructor(svgs) {
    this.svgs = svgs;
    for (const svg of svgs) {
      svg.addEventListener("wheel", (event) => this.wheeled(event, svg), { passive: false });
      svg.addEventListener("pointerdown", (event) => this.grabbed(event, svg));
    }
    this.watcher = new ResizeObserver(() => this.box && !this.zoomed && this.fit());
    this.watcher.observe(svgs[0]);
  }

  /** Shows all of `box`, and makes the panels high enough for it. */
  fit(box = this.box) {
    this.box = box;
    const width = this.svgs[0].clientWidth || 800;
    const wide = Math.min(width / box.width, LARGEST_SCALE);
    const height = Math.min(box.height * wide, Math.max(window.innerHeight * 0.88, box.height * SMALLEST_SCALE));
    const scale = Math.min(wide, height / box.height);
    for (const svg of this.svgs) svg.style.height = `${Math.round(height)}px`;
    this.look({
      x: box.x + (box.width - width / scale) / 2,
      y: box.y + (box.height - height / scale) / 2,
      width: width / scale,
      height: height / scale,
    });
    this.whole = this.view;
    this.mark();
  }

  get zoomed() {
    return this.view.width < this.whole.width * 0.999;
  }

  look(view) {
    this.view = view;
    const numbers = [view.x, view.y, view.width, view.height].map((n) => n.toFixed(2)).join(" ");
    for (const svg of this.svgs) {
      svg.setAttribute("viewBox", numbers);
      svg.classList.toggle("far", svg.clientWidth < view.width * LEGIBLE_SCALE);
    }
  }

  /** On touch screens, dragging moves the drawing only when it is zoomed in. */
  mark() {
    for (const svg of this.svgs) svg.classList.toggle("zoomed", this.zoomed);
  }

  /** Zooms about a point of the drawing, by default the middle of the view. */
  zoom(factor, point = this.middle()) {
    const wanted = this.view.width / factor;
    const width = Math.min(Math.max(wanted, this.whole.width / MOST_ZOOM), this.whole.width * 1.5);
    const ratio = width / this.view.width;
    this.look({
      x: point.x - (point.x - this.view.x) * ratio,
      y: point.y - (point.y - this.view.y) * ratio,
      width,
      height: this.view.height * ratio,
    });
    this.mark();
  }

  middle() {
    return { x: this.view.x + this.view.width / 2, y: this.view.y + this.view.height / 2 };
  }

  move(right, down) {
    this.look({ ...this.view, x: this.view.x + right, y: this.view.y + down });
  }

  /** Moves just enough to bring a point into view. */
  reveal({ x, y }) {
    const { view } = this;
    const [marginX, marginY] = [view.width * 0.1, view.height * 0.1];
    const right = Math.min(x - view.x - marginX, 0) + Math.max(x - view.x - view.width + marginX, 0);
    const down = Math.min(y - view.y - marginY, 0) + Math.max(y - view.y - view.height + marginY, 0);
    if (this.zoomed) this.move(right, down);
  }

  pointOf(event, svg) {
    return new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  }

  wheeled(event, svg) {
    if (!event.ctrlKey) return;
    event.preventDefault();
    this.zoom(STEP ** (-event.deltaY / 100), this.pointOf(event, svg));
  }

  grabbed(event, svg) {
    if (event.button !== 0 || (event.pointerType === "touch" && !this.zoomed)) return;
    const start = this.pointOf(event, svg);
    const controller = new AbortController();
    const moved = (next) => {
      if (!svg.hasPointerCapture(event.pointerId)) svg.setPointerCapture(event.pointerId);
      const point = this.pointOf(next, svg);
      this.move(start.x - point.x, start.y - point.y);
    };
    const options = { signal: controller.signal };
    svg.addEventListener("pointermove", moved, options);
    for (const end of ["pointerup", "pointercancel"]) {
      window.addEventListener(end, () => controller.abort(), options);
    }
  }
}
