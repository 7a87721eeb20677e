"use strict";
// Draws the charts at the width of their boxes in the reader's colour scheme, and opens the section that a link points
// to.
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const boxes = [...document.querySelectorAll("[data-chart]")];
  const views = new Map();
  const drawnAt = new Map();

  // The chart library is kept as text until a chart needs it, because running it takes longer than displaying the page.
  const engine = document.getElementById("chart-engine");

  function embed() {
    if (!window.vegaEmbed) {
      const script = document.createElement("script");
      script.textContent = engine.textContent;
      document.head.append(script);
    }
    return window.vegaEmbed;
  }

  // Replace the style sheet's variables in the theme by their colours, because a saved picture has no style sheet.
  function theme() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => JSON.stringify(style.getPropertyValue(name).trim()).slice(1, -1);
    return JSON.parse(engine.dataset.theme.replace(/var\((--[a-z]+)\)/g, (_, name) => read(name)));
  }

  // A single chart takes the whole width; small multiples take as many columns as fit.
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

  // A box in a closed section has no width yet, so the width of the column is used.
  function room(box) {
    if (box.clientWidth > 0) return box.clientWidth;
    const main = document.querySelector("main");
    const style = getComputedStyle(main);
    return main.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  }

  async function draw(box) {
    const options = { actions: { export: true, source: false, compiled: false, editor: false }, renderer: "svg" };
    const tooltip = { theme: dark.matches ? "dark" : "light" };
    const downloadFileName = box.dataset.chart.replace("spec-", "dualform-");
    const width = room(box);
    drawnAt.set(box, width);
    views.get(box)?.finalize();
    const spec = fitted(JSON.parse(document.getElementById(box.dataset.chart).textContent), Math.floor(width) - 8);
    const embedded = await embed()(box, spec, { ...options, tooltip, downloadFileName, config: theme() });
    views.set(box, embedded);
    box.querySelector("details")?.addEventListener("toggle", () => fillMenu(box, embedded.view));
  }

  // Vega-Embed creates a picture only when a mouse button is pressed, so saving by keyboard would do nothing.
  async function fillMenu(box, view) {
    for (const link of box.querySelectorAll(".vega-actions a[download]")) {
      link.href = await view.toImageURL(link.download.split(".").pop());
    }
  }

  const resized = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const change = Math.abs(target.clientWidth - drawnAt.get(target));
      // Delayed, because drawing inside the notification would resize the observed box.
      if (target.clientWidth > 0 && change > 8) setTimeout(draw, 0, target);
    }
  });

  async function drawAndWatch(box) {
    if (drawnAt.has(box)) return;
    await draw(box);
    resized.observe(box);
  }

  // A chart is drawn when the reader scrolls near it or opens its section. Charts are drawn one after the other, so that
  // the page stays responsive; those of the first screen are already visible as pictures.
  let queue = Promise.resolve();
  const near = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting || drawnAt.has(target)) continue;
        queue = queue.then(() => new Promise((next) => setTimeout(next, 0))).then(() => drawAndWatch(target));
      }
    },
    { rootMargin: "500px" },
  );
  const idle = window.requestIdleCallback ?? ((task) => setTimeout(task, 300));
  idle(() => boxes.forEach((box) => near.observe(box)), { timeout: 2000 });
  dark.addEventListener("change", () => [...drawnAt.keys()].forEach(draw));

  // Closed sections.
  const sections = [...document.querySelectorAll("main details:not(.chart details)")];

  function reveal() {
    let target = null;
    try {
      target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    } catch {
      return; // The hash is not a valid text, so it points to nothing.
    }
    if (!target) return;
    for (let each = target; each; each = each.parentElement) {
      if (each.tagName === "DETAILS") each.open = true;
    }
    target.scrollIntoView();
  }
  window.addEventListener("hashchange", reveal);
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#']");
    // Clicking the same link again does not change the hash.
    if (link && link.hash === location.hash) reveal();
  });
  reveal();

  const button = document.getElementById("open-all");
  if (button) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const open = sections.some((each) => !each.open);
      for (const each of sections) each.open = open;
      button.textContent = open ? "Close all" : "Open all";
    });
  }

  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = sections.filter((each) => !each.open);
    for (const each of closed) each.open = true;
    // Print all charts, drawing them without a timer because the browser does not wait for timers here.
    boxes.forEach(drawAndWatch);
  });
  window.addEventListener("afterprint", () => {
    for (const each of closed) each.open = false;
  });
})();
