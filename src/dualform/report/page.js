"use strict";
// Draws every chart of the page at the width that its box has, in the colours that the reader's screen prefers.
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const boxes = [...document.querySelectorAll("[data-chart]")];
  const specs = new Map(boxes.map((box) => [box, JSON.parse(document.getElementById(box.dataset.chart).textContent)]));
  const views = new Map();

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    const [text, soft, line] = [read("--text"), read("--soft"), read("--line")];
    const font = read("--font");
    return {
      background: "transparent",
      font,
      title: { color: text, font },
      axis: {
        labelColor: soft, titleColor: soft, gridColor: line, domainColor: line, tickColor: line,
        titleFontWeight: "normal", labelFontSize: 11, titleFontSize: 11.5,
      },
      legend: { labelColor: soft, titleColor: soft, labelFontSize: 11 },
      view: { stroke: null },
    };
  }

  // A chart on its own takes the whole width; small multiples take as many columns as fit.
  function fitted(spec, room) {
    const copy = structuredClone(spec);
    if (!copy.concat) {
      copy.width = Math.max(200, room);
      copy.autosize = { type: "fit-x", contains: "padding" };
      return copy;
    }
    const gap = copy.spacing.column;
    const wanted = copy.concat[0].width;
    const columns = Math.min(copy.columns, Math.max(1, Math.floor((room + 20) / (wanted * 0.9 + gap))));
    const width = Math.max(120, Math.floor((room - gap * columns) / columns) - 6);
    copy.columns = columns;
    for (const panel of copy.concat) panel.width = Math.min(width, wanted * 2);
    return copy;
  }

  const drawnAt = new Map();

  async function draw(box) {
    const options = { actions: { export: true, source: false, compiled: false, editor: false }, renderer: "svg" };
    const tooltip = { theme: dark.matches ? "dark" : "light" };
    const downloadFileName = box.dataset.chart.replace("spec-", "dualform-");
    drawnAt.set(box, box.clientWidth);
    views.get(box)?.finalize();
    const spec = fitted(specs.get(box), Math.floor(box.clientWidth) - 8);
    const embedded = await window.vegaEmbed(box, spec, { ...options, tooltip, downloadFileName, config: colours() });
    views.set(box, embedded);
    box.querySelector("details")?.addEventListener("toggle", () => fillMenu(box, embedded.view));
  }

  // Vega-Embed makes a picture only once a mouse button goes down, so that the keyboard would save nothing.
  async function fillMenu(box, view) {
    for (const link of box.querySelectorAll(".vega-actions a[download]")) {
      link.href = await view.toImageURL(link.download.split(".").pop());
    }
  }

  boxes.forEach(draw);
  const observer = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const change = Math.abs(target.clientWidth - drawnAt.get(target));
      // Not at once: drawing inside the notification would resize what is being observed.
      if (target.clientWidth > 0 && change > 8) setTimeout(draw, 0, target);
    }
  });
  for (const box of boxes) observer.observe(box);
  dark.addEventListener("change", () => boxes.forEach(draw));
})();
